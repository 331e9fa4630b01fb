"""The model providers that Kelpie knows by name: how they speak and which variables name them.

Owns the one table of them. It is data alone and imports nothing of the product, so that reading the
settings loads no wire. It reads no environment: the settings do, by this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

WireName = Literal["openai", "anthropic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDefaults:
    """What is known about a provider before anybody configures it.

    Attributes:
        wire: The dialect its endpoint speaks.
        base_url: Its API endpoint; empty where only the operator can know it.
        key_variable: The environment variable that usually holds its key; empty if it needs none.
        base_url_variable: The environment variable that usually moves its endpoint.
        output_limit_field: What its wire calls ``max_tokens``.
    """

    wire: WireName
    base_url: str
    key_variable: str
    base_url_variable: str
    output_limit_field: str = "max_tokens"


def _openai(name: str, base_url: str) -> ProviderDefaults:
    return ProviderDefaults(
        wire="openai",
        base_url=base_url,
        key_variable=f"{name}_API_KEY",
        base_url_variable=f"{name}_BASE_URL",
    )


def _local(name: str, port: int) -> ProviderDefaults:
    return ProviderDefaults(
        wire="openai",
        base_url=f"http://127.0.0.1:{port}/v1",
        key_variable=f"{name}_API_KEY",
        base_url_variable=f"{name}_BASE_URL",
    )


PROVIDERS: Final[Mapping[str, ProviderDefaults]] = MappingProxyType(
    {
        "openai": ProviderDefaults(
            wire="openai",
            base_url="https://api.openai.com/v1",
            key_variable="OPENAI_API_KEY",
            base_url_variable="OPENAI_BASE_URL",
            output_limit_field="max_completion_tokens",
        ),
        "openai-proxy": _openai("OPENAI_PROXY", ""),
        "anthropic": ProviderDefaults(
            wire="anthropic",
            base_url="https://api.anthropic.com/v1",
            key_variable="ANTHROPIC_API_KEY",
            base_url_variable="ANTHROPIC_BASE_URL",
        ),
        "cerebras": _openai("CEREBRAS", "https://api.cerebras.ai/v1"),
        "deepseek": _openai("DEEPSEEK", "https://api.deepseek.com/v1"),
        "fireworks": _openai("FIREWORKS", "https://api.fireworks.ai/inference/v1"),
        "groq": _openai("GROQ", "https://api.groq.com/openai/v1"),
        "openrouter": _openai("OPENROUTER", "https://openrouter.ai/api/v1"),
        "together": _openai("TOGETHER", "https://api.together.xyz/v1"),
        "xai": _openai("XAI", "https://api.x.ai/v1"),
        "llamacpp": _local("LLAMACPP", 8080),
        "lmstudio": _local("LMSTUDIO", 1234),
        "ollama": _local("OLLAMA", 11434),
        "vllm": _local("VLLM", 8000),
    }
)
"""Every provider with defaults, by the first part of its models' handles."""

MODELS: Final[Mapping[str, str]] = MappingProxyType(
    {"anthropic": "claude-sonnet-4-5", "openai": "gpt-5-mini"}
)
"""What answers when a provider is configured and nobody names a model; the first one wins."""
