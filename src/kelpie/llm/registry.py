"""The configured providers, and which of them a model's handle means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from kelpie.core.errors import ConfigError, InvalidFieldError
from kelpie.llm.anthropic import AnthropicWire
from kelpie.llm.model import ModelProvider
from kelpie.llm.openai import OpenAiWire
from kelpie.llm.provider import HttpModelProvider
from kelpie.llm.providers import PROVIDERS, WireName
from kelpie.llm.wire import Wire
from kelpie.ports.clock import Clock
from kelpie.ports.network import Network
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedProvider:
    """One configured provider; ``api_key`` is the key itself, resolved, and never printed.

    A ``base_url`` without a path gets ``/v1``, which every known wire expects; an Anthropic one
    always ends there, since that provider's own clients are configured without it.

    Raises:
        ConfigError: The name, the base URL or the key cannot be used.
    """

    name: str
    wire: WireName
    base_url: str
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ConfigError(f"provider name {self.name[:64]!r} must be text without a slash")
        if not self.api_key.isascii() or any(not c.isprintable() or c == " " for c in self.api_key):
            raise ConfigError(
                f"the API key of provider {self.name!r} has a space or another character that "
                "no key has; check where it is read from"
            )
        object.__setattr__(self, "base_url", _normalize_base_url(self))


def _normalize_base_url(settings: ResolvedProvider) -> str:
    problem = ""
    try:
        parts = urlsplit(settings.base_url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigError(
            f"the base URL of provider {settings.name!r} is no URL; write https://host/v1"
        ) from None
    if not valid:
        problem = "must start with http:// or https:// and name a host"
    elif parts.username or parts.password:
        problem = "must not hold credentials; use the API key"
    elif parts.query or parts.fragment:
        problem = "must not have a query or a fragment"
    if problem:
        raise ConfigError(f"the base URL of provider {settings.name!r} {problem}")
    path = parts.path.rstrip("/")
    if not path or (settings.wire == "anthropic" and not path.endswith("/v1")):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


class ProviderRegistry:
    """The configured providers, by name."""

    def __init__(
        self,
        settings: Iterable[ResolvedProvider],
        *,
        network: Network,
        clock: Clock,
        rng: Rng,
        telemetry: Telemetry,
        capture_content: bool = False,
    ) -> None:
        self._providers: dict[str, ModelProvider] = {
            entry.name: HttpModelProvider(
                name=entry.name,
                base_url=entry.base_url,
                api_key=entry.api_key,
                wire=_make_wire(entry),
                network=network,
                clock=clock,
                rng=rng,
                telemetry=telemetry,
                capture_content=capture_content,
            )
            for entry in settings
        }

    @property
    def names(self) -> list[str]:
        """The configured providers' names, sorted."""
        return sorted(self._providers)

    def provider(self, name: str) -> ModelProvider:
        """Return the provider ``name``.

        Raises:
            InvalidFieldError: It is unknown or not configured; the message lists those that are.
        """
        provider = self._providers.get(name)
        if provider is not None:
            return provider
        configured = ", ".join(self.names) or "none"
        defaults = PROVIDERS.get(name)
        if defaults is None:
            known = ", ".join(sorted(PROVIDERS))
            problem = f"is unknown (configured: {configured}; known: {known})"
        else:
            variable = defaults.key_variable if defaults.base_url else defaults.base_url_variable
            problem = f"is not configured (configured: {configured}); set {variable}"
        raise InvalidFieldError("model", f"provider {name[:64]!r} {problem}")

    def resolve(self, handle: str) -> ModelProvider:
        """Return the provider of the model ``<provider>/<name>``; the name may hold slashes.

        Raises:
            InvalidFieldError: The handle is malformed, or its provider unknown.
        """
        name, slash, model = handle.partition("/")
        if not name or not slash or not model:
            raise InvalidFieldError("model", f"{handle[:64]!r} must read <provider>/<name>")
        return self.provider(name)


def _make_wire(settings: ResolvedProvider) -> Wire:
    if settings.wire == "anthropic":
        return AnthropicWire()
    defaults = PROVIDERS.get(settings.name)
    return OpenAiWire(output_limit_field=defaults.output_limit_field if defaults else "max_tokens")
