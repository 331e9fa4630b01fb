"""Defaults and discoveries: what the settings are where no layer says.

A provider's own variables (``OPENAI_API_KEY``) configure it without any file; a file or a
``KELPIE_*`` variable that says something else wins over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kelpie.core import limits
from kelpie.core.digests import digest_bytes
from kelpie.core.dsn import Dsn
from kelpie.core.errors import ConfigError
from kelpie.llm.providers import MODELS, PROVIDERS
from kelpie.settings.merge import Values
from kelpie.settings.model import (
    NODE_FILE,
    ApprovalSettings,
    ClusterSettings,
    LogSettings,
    Origin,
    ProviderSettings,
    SandboxSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    TelemetrySettings,
    WorkspaceSettings,
)
from kelpie.settings.secret import SecretRef
from kelpie.settings.values import parse_url
from kelpie.storage.cluster import NODE_NAME_DEFAULT

_DIGEST_CHARS: Final = 12  # tell the few databases of one machine apart


def build_settings(
    values: Values, *, environment: Mapping[str, str], home: Path, notices: tuple[str, ...]
) -> Settings:
    """Return the settings that ``values`` say, completed by discoveries and defaults.

    Raises:
        ConfigError: A provider lacks what it needs, or a discovered value does not fit.
    """
    _discover(values, environment)
    data_dir = values.get("data_dir", _data_dir(environment, home))
    node = values.get("node", NODE_NAME_DEFAULT)
    providers = tuple(_provider(values, name) for name in values.provider_names())
    _default_model(values, providers)
    return Settings(
        data_dir=data_dir,
        node=node,
        model=values.get("model", ""),
        server=ServerSettings(
            host=values.get("server.host", "127.0.0.1"),
            port=values.get("server.port", limits.PORT_DEFAULT),
            api_keys=values.get("server.api_keys", ()),
        ),
        store=_store(values, data_dir, node),
        cluster=ClusterSettings(
            listen=values.get("cluster.listen", "127.0.0.1:0"),
            join=values.get("cluster.join"),
            secret=values.get("cluster.secret"),
            certificates=values.get("cluster.certificates"),
            lease_ttl_ms=values.get("cluster.lease_ttl_ms", limits.LEASE_TTL_MS),
        ),
        workspaces=WorkspaceSettings(roots=values.get("workspaces.roots", ())),
        log=LogSettings(
            level=values.get("log.level", "info"), format=values.get("log.format", "auto")
        ),
        telemetry=TelemetrySettings(
            endpoint=values.get("telemetry.endpoint", ""),
            prompts=values.get("telemetry.prompts", False),
        ),
        approvals=ApprovalSettings(ttl_ms=values.get("approvals.ttl_ms", limits.APPROVAL_TTL_MS)),
        sandbox=SandboxSettings(tier=values.get("sandbox.tier", "bubblewrap")),
        providers=providers,
        origins=values.origins(),
        notices=notices,
    )


def _store(values: Values, data_dir: Path, node: str) -> StoreSettings:
    url = values.get("store.url")
    if isinstance(url, Dsn):
        # Each node of a machine has a lock and a socket of its own, in one directory of data.
        digest = digest_bytes(str(url).encode()).removeprefix("sha256:")[:_DIGEST_CHARS]
        beside = data_dir / "nodes" / digest / node / NODE_FILE
        return StoreSettings(path=values.get("store.path", beside), url=url)
    return StoreSettings(path=url or values.get("store.path", data_dir / "kelpie.db"))


def _discover(values: Values, environment: Mapping[str, str]) -> None:
    """Fill in what well-known variables say and no layer does."""
    for name, known in PROVIDERS.items():
        if environment.get(known.key_variable):
            origin = Origin(layer="discovered", source=known.key_variable)
            secret = SecretRef(source="env", target=known.key_variable)
            values.fill(f"providers.{name}.api_key", secret, origin)
        key = f"providers.{name}.base_url"
        _discover_url(values, environment, known.base_url_variable, key)
    _discover_url(values, environment, "OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.endpoint")
    if environment.get("KELPIE_API_KEY"):
        origin = Origin(layer="discovered", source="KELPIE_API_KEY")
        keys = (SecretRef(source="env", target="KELPIE_API_KEY"),)
        values.fill("server.api_keys", keys, origin)


def _discover_url(values: Values, environment: Mapping[str, str], variable: str, key: str) -> None:
    if not environment.get(variable):
        return
    try:
        url = parse_url(environment[variable])
    except ValueError as error:
        raise ConfigError(f"{variable}: {key}: {error}", field=key, source=variable) from None
    values.fill(key, url, Origin(layer="discovered", source=variable))


def _data_dir(environment: Mapping[str, str], home: Path) -> Path:
    base = environment.get("XDG_DATA_HOME", "")
    root = Path(base) if base.startswith("/") else home / ".local" / "share"
    return root / "kelpie"


def _provider(values: Values, name: str) -> ProviderSettings:
    known = PROVIDERS.get(name)
    wire = values.get(f"providers.{name}.wire", known.wire if known else None)
    base_url = values.get(f"providers.{name}.base_url", known.base_url if known else None)
    for field, value in (("wire", wire), ("base_url", base_url)):
        if not value:
            key = f"providers.{name}.{field}"
            listed = ", ".join(name for name, known in PROVIDERS.items() if known.base_url)
            message = f"{key}: is missing; only {listed} are known without it"
            raise ConfigError(message, field=key)
    api_key = values.get(f"providers.{name}.api_key")
    return ProviderSettings(name=name, wire=wire, base_url=base_url, api_key=api_key)


def _default_model(values: Values, providers: tuple[ProviderSettings, ...]) -> None:
    """Fill in the model of the first known provider that is configured."""
    configured = {provider.name for provider in providers}
    for name, model in MODELS.items():
        if name in configured:
            values.fill(
                "model", f"{name}/{model}", Origin(layer="discovered", source=f"providers.{name}")
            )
            return
