"""What must hold on this host before a server starts, checked before anything listens.

Each refusal names the setting that has to change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from kelpie.core.errors import ConfigError
from kelpie.settings.model import Settings


def require_startable(settings: Settings, environment: Mapping[str, str]) -> None:
    """Return if a server may start with these settings on this host.

    Raises:
        ConfigError: The address needs a key, a secret cannot be found, the default model's
            provider is not configured, or a workspace root is no directory.
    """
    require_safe_address(settings)
    _require_safe_cluster(settings, environment)
    for index, reference in enumerate(settings.server.api_keys):
        reference.resolve(environment, field=f"server.api_keys[{index}]")
    for provider in settings.providers:
        if provider.api_key is not None:
            provider.api_key.resolve(environment, field=f"providers.{provider.name}.api_key")
    _require_model_provider(settings)
    for root in settings.workspaces.roots:
        if not root.is_dir():
            message = f"workspaces.roots: {root} is not a directory; create it or remove it"
            raise ConfigError(message, field="workspaces.roots")


def require_safe_address(settings: Settings) -> None:
    """Return if the server's address is loopback or callers need a key.

    Raises:
        ConfigError: Anybody who reaches the address could run agents.
    """
    if is_loopback(settings.server.host) or settings.server.api_keys:
        return
    message = (
        f"server.host: {settings.server.host} is reachable from other machines, and no API key "
        "protects it; set KELPIE_API_KEY or server.api_keys, or listen on 127.0.0.1"
    )
    raise ConfigError(message, field="server.host")


def _require_safe_cluster(settings: Settings, environment: Mapping[str, str]) -> None:
    cluster = settings.cluster
    if cluster.secret is not None:
        cluster.secret.resolve(environment, field="cluster.secret")
    host = cluster.listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if is_loopback(host) or cluster.secret is not None or cluster.certificates is not None:
        return
    message = (
        f"cluster.listen: {host} is reachable from other machines, and nothing proves who a node "
        "is; set cluster.secret or cluster.certificates, or listen on 127.0.0.1"
    )
    raise ConfigError(message, field="cluster.listen")


def is_loopback(host: str) -> bool:
    """Return whether an address can only be reached from this machine.

    A host name other than ``localhost`` counts as reachable: what it means may change.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_model_provider(settings: Settings) -> None:
    name = settings.model.partition("/")[0]
    if not name or settings.provider(name) is not None:
        return
    configured = ", ".join(provider.name for provider in settings.providers) or "none"
    message = (
        f"model: {settings.model} needs the provider {name}, and the configured providers are: "
        f"{configured}; set its key's variable or add [providers.{name}]"
    )
    raise ConfigError(message, field="model")
