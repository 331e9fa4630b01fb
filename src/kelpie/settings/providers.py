"""The model providers that Kelpie knows by name: how they speak and which variables name them.

A provider is configured as soon as its key's variable or its address's variable is set; any other
provider needs a ``[providers.NAME]`` table with ``wire`` and ``base_url``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from kelpie.settings.model import Wire


class KnownProvider(NamedTuple):
    """What is known of a provider; an empty ``base_url`` has to be configured."""

    wire: Wire
    base_url: str
    key_variable: str
    base_url_variable: str


def _openai(name: str, base_url: str) -> KnownProvider:
    return KnownProvider("openai", base_url, f"{name}_API_KEY", f"{name}_BASE_URL")


PROVIDERS: Final[Mapping[str, KnownProvider]] = MappingProxyType(
    {
        "openai": _openai("OPENAI", "https://api.openai.com/v1"),
        "openai-proxy": _openai("OPENAI_PROXY", ""),
        "anthropic": KnownProvider(
            "anthropic",
            "https://api.anthropic.com/v1",
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_BASE_URL",
        ),
        "cerebras": _openai("CEREBRAS", "https://api.cerebras.ai/v1"),
        "deepseek": _openai("DEEPSEEK", "https://api.deepseek.com/v1"),
        "fireworks": _openai("FIREWORKS", "https://api.fireworks.ai/inference/v1"),
        "groq": _openai("GROQ", "https://api.groq.com/openai/v1"),
        "openrouter": _openai("OPENROUTER", "https://openrouter.ai/api/v1"),
        "together": _openai("TOGETHER", "https://api.together.xyz/v1"),
        "xai": _openai("XAI", "https://api.x.ai/v1"),
        "llamacpp": _openai("LLAMACPP", "http://127.0.0.1:8080/v1"),
        "lmstudio": _openai("LMSTUDIO", "http://127.0.0.1:1234/v1"),
        "ollama": _openai("OLLAMA", "http://127.0.0.1:11434/v1"),
        "vllm": _openai("VLLM", "http://127.0.0.1:8000/v1"),
    }
)

MODELS: Final[Mapping[str, str]] = MappingProxyType(
    {"anthropic": "claude-sonnet-4-5", "openai": "gpt-5-mini"}
)
"""What answers when a provider is configured and nobody names a model; the first one wins."""
