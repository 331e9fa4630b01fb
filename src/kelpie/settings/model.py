"""The settings as one immutable value, with the origin of every part.

Invariant: a ``Settings`` that exists has passed the checks of its fields' types, ranges and
shapes; what depends on the host (a secret's presence, an address) is checked by `start`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from kelpie.core.dsn import Dsn
from kelpie.llm.providers import WireName
from kelpie.settings.secret import SecretRef

Layer = Literal["flag", "environment", "project", "user", "discovered", "default"]
"""``discovered``: a provider's own variables (``OPENAI_API_KEY``), used where nothing else says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who said a value: the layer, and the file and line, variable or flag in it."""

    layer: Layer
    source: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{self.layer} {place}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the server listens, and which keys it accepts (none: no key is asked for)."""

    host: str
    port: int
    api_keys: tuple[SecretRef, ...] = ()


NODE_FILE: Final = "node"
"""What lies in the directory of a node of a database; its lock and socket lie beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where the store is: a database's address, else the embedded store's file.

    Attributes:
        path: The embedded store's file, with lock and blobs beside it; or, with ``url``, the file
            beside which this node's lock and socket lie.
        url: The database that several nodes share.
    """

    path: Path
    url: Dsn | None = None

    @property
    def place(self) -> str:
        """Where the store is, as people may see it."""
        return str(self.url or self.path)

    def list_places(self) -> Sequence[Path]:
        """Return the files beside which nodes of this machine have their locks, our own first.

        An embedded store has one; a database has one for each node that was ever started here.
        """
        if self.url is None or self.path.name != NODE_FILE:
            return (self.path,)
        directories = self.path.parent.parent.glob("*/")
        others = sorted(each / NODE_FILE for each in directories)
        return (self.path, *(path for path in others if path != self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How this node meets the others of its database.

    Attributes:
        listen: Where they reach it, as ``host:port``; port 0 is any free one.
        join: Where another one answers HTTP; None if nobody was named.
        secret: Where their common secret is; None for the one in the database.
        certificates: The directory of certificates; None for connections without TLS.
        lease_ttl_ms: How long it may be silent.
    """

    listen: str
    join: str | None
    secret: SecretRef | None
    certificates: Path | None
    lease_ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    """One model provider: how it speaks, where it is, and where its key is (None: no key)."""

    name: str
    wire: WireName
    base_url: str
    api_key: SecretRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceSettings:
    """Which directories agents may be given as workspaces."""

    roots: tuple[Path, ...] = ()

    def allows(self, directory: Path) -> bool:
        """Return whether ``directory``, absolute and resolved, lies in a root.

        Without roots every directory is allowed; whoever asks then decides who may name one.
        """
        return not self.roots or any(directory.is_relative_to(root) for root in self.roots)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the log says, and how; ``auto`` is text on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Where spans go (empty: nowhere), and whether they carry prompt text."""

    endpoint: str
    prompts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalSettings:
    """How long a question waits for a person before it counts as denied."""

    ttl_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """The lowest tier that commands may run in."""

    tier: Literal["bubblewrap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a person configures.

    Attributes:
        data_dir: Where Kelpie keeps what it owns.
        node: This node's name among those that share a store.
        model: The handle ``<provider>/<name>`` of agents that name none; empty if no provider is
            configured.
        providers: The configured providers, by name.
        origins: Where each dotted key's value came from.
        notices: What a person should know about the layers, ignored variables for instance.
    """

    data_dir: Path
    node: str
    model: str
    server: ServerSettings
    store: StoreSettings
    cluster: ClusterSettings
    workspaces: WorkspaceSettings
    log: LogSettings
    telemetry: TelemetrySettings
    approvals: ApprovalSettings
    sandbox: SandboxSettings
    providers: tuple[ProviderSettings, ...] = ()
    origins: Mapping[str, Origin] = field(
        default_factory=dict[str, Origin], compare=False, repr=False
    )
    notices: tuple[str, ...] = field(default=(), compare=False)

    def provider(self, name: str) -> ProviderSettings | None:
        """Return the configured provider of that name."""
        return next((provider for provider in self.providers if provider.name == name), None)

    def origin(self, key: str) -> Origin:
        """Return who said the value of the dotted ``key``; the defaults said what nobody did."""
        return self.origins.get(key, Origin(layer="default"))
