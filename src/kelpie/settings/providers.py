"""The model providers that Kelpie knows by name: how they speak and which variables name them.

A provider is configured as soon as its key's variable or its address's variable is set; any other
provider needs a ``[providers.NAME]`` table with ``wire`` and ``base_url``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kelpie.settings.model import Wire


class KnownProvider(NamedTuple):
    """One provider; ``model`` answers when nobody names a model (empty: somebody must)."""

    name: str
    wire: Wire
    key_variable: str
    url_variable: str
    base_url: str
    model: str


PROVIDERS: Final[tuple[KnownProvider, ...]] = (
    KnownProvider(
        name="anthropic",
        wire="anthropic",
        key_variable="ANTHROPIC_API_KEY",
        url_variable="ANTHROPIC_BASE_URL",
        base_url="https://api.anthropic.com",
        model="claude-sonnet-4-5",
    ),
    KnownProvider(
        name="openai",
        wire="openai",
        key_variable="OPENAI_API_KEY",
        url_variable="OPENAI_BASE_URL",
        base_url="https://api.openai.com/v1",
        model="gpt-5-mini",
    ),
    KnownProvider(
        name="openrouter",
        wire="openai",
        key_variable="OPENROUTER_API_KEY",
        url_variable="OPENROUTER_BASE_URL",
        base_url="https://openrouter.ai/api/v1",
        model="",
    ),
)
"""In the order in which they give the default model."""


def known_provider(name: str) -> KnownProvider | None:
    """Return the known provider of that name."""
    return next((provider for provider in PROVIDERS if provider.name == name), None)
