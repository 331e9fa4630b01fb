"""What the HTTP edge needs from the rest of the house, and the bundle that carries it.

Owns no behaviour. Every collaborator is a protocol, so that the simulator and the tests hand in
their own worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kelpie.actors.commands import Message
from kelpie.cluster.forwarding import Forwarding
from kelpie.cluster.package import PackageKind
from kelpie.core.digests import Digest
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import INVOCATION_TIMEOUT_MS
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.server.actors.service import ActorService
from kelpie.server.ops.responses import (
    AuditSoundness,
    ExportOut,
    ExportPage,
    ImportOut,
    SealOut,
    StoreSoundness,
)
from kelpie.storage.cluster import ClusterStore
from kelpie.storage.protocol import Store


class Calls(Protocol):
    """The actor runtime as the edge uses it."""

    def accepting(self) -> bool:
        """Whether new calls are taken."""
        ...

    async def call(
        self,
        actor: ActorId,
        message: Message,
        *,
        principal: str,
        key: str | None = None,
        timeout_ms: int = INVOCATION_TIMEOUT_MS,
    ) -> Any:
        """Run one turn and return its reply once it is durable."""
        ...

    async def query(
        self, actor: ActorId, query: Message, *, timeout_ms: int = INVOCATION_TIMEOUT_MS
    ) -> Any:
        """Answer from the last finished turn's state."""
        ...


class Wakeups(Protocol):
    """One reader's wake-up flag."""

    async def wait(self, timeout_s: float) -> bool:
        """Return True once something may be new, False after ``timeout_s``."""
        ...


class Hub(Protocol):
    """Wakes readers once something is durable; a wake-up is a hint, the store is the truth."""

    def watch(self, actor: ActorId | None = None) -> AbstractContextManager[Wakeups]:
        """Watch one actor's events and streams, or everything."""
        ...


class PlanService(Protocol):
    """Plans as the edge shows them; replies are JSON-compatible mappings."""

    async def create(
        self, source: PlanSource, *, tenant: Tenant, principal: str, key: str | None
    ) -> dict[str, Any]:
        """Make a plan and return it, with a diff per unit."""
        ...

    async def show(self, plan_id: str, *, tenant: Tenant) -> dict[str, Any]:
        """Return one plan.

        Raises:
            NotFoundError: There is none of this id.
        """
        ...

    async def list(
        self, *, tenant: Tenant, limit: int, after: str | None
    ) -> Sequence[dict[str, Any]]:
        """Return plans, newest first."""
        ...

    async def apply(
        self, plan_id: str, *, tenant: Tenant, principal: str, key: str | None
    ) -> dict[str, Any]:
        """Put the plan through the gate and return it; the apply goes on by itself."""
        ...


class StoreCare(Protocol):
    """Care of the whole store that goes beyond the Store protocol."""

    async def release(self) -> None:
        """End the held state after a restore, and let what is pending go on."""
        ...

    async def check(self) -> StoreSoundness:
        """Read everything and say what is damaged."""
        ...

    async def verify_audit(self) -> AuditSoundness:
        """Check every audit chain."""
        ...


class Packages(Protocol):
    """Actors that leave as files and arrive from them, and encrypted backups."""

    async def back_up(self, target: Path, *, recipients: Sequence[str]) -> None:
        """Write a backup of the whole store to one new encrypted file."""
        ...

    async def export(
        self,
        actor: ActorId,
        target: Path,
        *,
        kind: PackageKind,
        recipients: Sequence[str] | None,
        principal: str,
    ) -> ExportOut:
        """Seal an actor and write its package to a new file."""
        ...

    async def receive(
        self, source: Path, *, workspace: str, tenant: Tenant, principal: str
    ) -> ImportOut:
        """Read a package's file and write its actor, held."""
        ...

    async def exports(self, tenant: Tenant) -> ExportPage:
        """Return a tenant's exports that were not taken back."""
        ...

    async def abort(self, actor: ActorId, *, principal: str) -> SealOut:
        """Take an export back."""
        ...

    async def confirm(self, actor: ActorId, *, principal: str) -> SealOut:
        """End an export: the actor is gone here."""
        ...

    async def release(self, actor: ActorId, *, principal: str) -> None:
        """Let an actor that arrived go on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSource:
    """Where a plan's workspace comes from: a path, or YAML text with the root it applies to.

    ``local`` says that the request came over the owner's own socket.
    """

    workspace: str = ""
    yaml: str = ""
    root: str = ""
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolInfo:
    """A tool that agents can be given.

    ``base`` tools come with every agent that does not decline base tools; those that need a
    workspace only with an agent that has one.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    base: bool = False
    needs_workspace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key that opens the API; only its digest is kept."""

    name: str
    digest: Digest


class WorkspacePolicy(Protocol):
    """Says which directories a caller may give an agent."""

    def __call__(self, directory: str, *, local: bool) -> str:
        """Return the directory, absolute and with links resolved.

        Raises:
            InvalidFieldError: It is not allowed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deps:
    """Everything the edge is built from.

    Attributes:
        runtime: Calls and queries of actors.
        hub: Wake-ups for followers.
        store: Reads by cursor, and the store's own care.
        cluster: The store's sessions of nodes and owners of shards.
        clock: Time.
        rng: Seeds of ids.
        telemetry: Logs, spans, metrics.
        plans: The plan service.
        workspace_for: Which directories an agent may be given.
        metrics_text: Renders ``/metrics``.
        care: Checks and releases the store.
        teleport: Exports and imports actors.
        actors: User-defined actors.
        version: The product's version.
        model_default: The handle of an agent that names none.
        model_providers: The names of the configured providers, which handles begin with.
        tools: What agents can be given, by name.
        forwarding: Passes on what another node owns; None for a node that is alone.
        api_keys: Without any, every caller is let in; `serve` then binds loopback only.
    """

    runtime: Calls
    hub: Hub
    store: Store
    cluster: ClusterStore
    clock: Clock
    rng: Rng
    telemetry: Telemetry
    plans: PlanService
    workspace_for: WorkspacePolicy
    metrics_text: Callable[[], str]
    care: StoreCare
    teleport: Packages
    actors: ActorService
    version: str
    model_default: str
    model_providers: frozenset[str]
    tools: Mapping[str, ToolInfo] = field(default_factory=dict[str, ToolInfo])
    forwarding: Forwarding | None = None
    api_keys: tuple[ApiKey, ...] = ()
