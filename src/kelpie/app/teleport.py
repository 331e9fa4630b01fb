"""Teleport wired to one node: what states and effects mean; packages and backups as files.

A package is written, and an encrypted one decrypted, in the data directory first: a file under the
name that was asked for is always a whole one.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from kelpie import __version__
from kelpie.agents.model import ACTOR_TYPE, AgentState
from kelpie.app.workspaces import is_workspace
from kelpie.cluster.package import PackageKind, chunks_of, write_chunks
from kelpie.cluster.teleport import MovingStore, Teleport, TeleportDeps
from kelpie.core.errors import (
    ConflictError,
    CorruptionError,
    InvalidFieldError,
    NotFoundError,
    UnavailableError,
)
from kelpie.core.ids import ActorId, Tenant, derive_uuid
from kelpie.core.quoting import quote_text
from kelpie.effects import lifecycle
from kelpie.effects.model import EffectRecord, Outcome
from kelpie.server.ops.names import actor_name
from kelpie.server.ops.responses import ExportOut, ExportPage, ImportOut, SealOut
from kelpie.settings import Settings
from kelpie.storage.age import IDENTITY_FILE, Identities, decrypt_file, encrypt_file, is_encrypted
from kelpie.storage.archive import pack_backup
from kelpie.storage.files import (
    digest_file,
    sync_directory,
    sync_file,
    temporary_directory,
    typed_failures,
)
from kelpie.storage.moving import Seal
from kelpie.storage.records import EffectRow
from kelpie.storage.tables import ACTORS, EFFECTS, Row

if TYPE_CHECKING:
    from kelpie.app.wiring import Node

T = TypeVar("T")

STAGING_DIRECTORY: Final = "packages"
_UNSURE: Final = "its actor was imported from a copy; whether this ran since is not known"


class PackagedAgents:
    """What this product's machines say about the bytes of a package."""

    def __init__(self, settings: Settings, take_up: Callable[[Sequence[EffectRow]], None]) -> None:
        self._settings = settings
        self._take_up = take_up

    def workspace_of(self, actor: ActorId, state: Row) -> str:
        """Return an agent's workspace; other actors have none."""
        return _agent(state).config.workspace if actor.type == ACTOR_TYPE else ""

    def relocate(self, actor: ActorId, state: Row, workspace: str) -> Row:
        """Return the row of an agent whose workspace lies elsewhere.

        Raises:
            CorruptionError: The state cannot be read.
        """
        if actor.type != ACTOR_TYPE:
            return state
        agent = _agent(state)
        if agent.config.workspace == workspace:
            return state
        config = msgspec.structs.replace(agent.config, workspace=workspace)
        moved = msgspec.msgpack.encode(msgspec.structs.replace(agent, config=config))
        return _replaced(state, ACTORS.place("state"), moved)

    def settle(self, effect: Row, now_ms: int) -> Row:
        """Return an effect as it arrives: what may run only once and was approved is unknown.

        Raises:
            CorruptionError: The effect cannot be read.
        """
        if effect[EFFECTS.place("state")] != "approved":
            return effect
        try:
            record = msgspec.msgpack.decode(_bytes(effect, "body"), type=EffectRecord)
        except msgspec.DecodeError as error:
            raise CorruptionError(f"an effect of the package cannot be read ({error})") from error
        if record.promise != "once" or record.state != "approved":
            return effect
        outcome = Outcome(status="unknown", error=_UNSURE)
        unsure = lifecycle.move(record, "unknown", now_ms, outcome=outcome, due_ms=0)
        values: dict[str, Any] = {
            "state": "unknown",
            "is_open": 1,
            "due_ms": 0,
            "updated_ms": now_ms,
            "body": msgspec.msgpack.encode(unsure),
        }
        for name, value in values.items():
            effect = _replaced(effect, EFFECTS.place(name), value)
        return effect

    def require_workspace(self, path: Path) -> None:
        """Return if effects may touch a directory, which need not exist.

        Raises:
            InvalidFieldError: They may not.
        """
        if not path.is_absolute() or not is_workspace(self._settings, str(path)):
            problem = f"{quote_text(str(path))} must be an absolute path without links, inside the"
            raise InvalidFieldError("workspace", f"{problem} roots, outside of Kelpie's own data")

    def take_up(self, rows: tuple[EffectRow, ...]) -> None:
        """Go on with effects whose actor takes turns again."""
        self._take_up(rows)


def _agent(state: Row) -> AgentState:
    data = state[ACTORS.place("state")]
    assert isinstance(data, bytes), "the row was checked"
    try:
        return msgspec.msgpack.decode(data, type=AgentState)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"the agent's state cannot be read ({error})") from error


def _bytes(row: Row, column: str) -> bytes:
    data = row[EFFECTS.place(column)]
    assert isinstance(data, bytes), "the row was checked"
    return data


def _replaced(row: Row, place: int, value: Any) -> Row:
    return (*row[:place], value, *row[place + 1 :])


def make_teleport(settings: Settings, node: Node) -> Teleport | None:
    """Return the exports and imports of an opened node; None over a database, which has none."""
    if settings.store.url is not None:
        return None
    world, store = node.world, cast("MovingStore", node.store)
    return Teleport(
        TeleportDeps(
            store=store,
            blobs=node.store.blobs,
            engine=node.runtime,
            pauses=node.pauses,
            contained=PackagedAgents(settings, node.dispatcher.take_up),
            supervisor=node.supervisor,
            clock=world.clock,
            rng=world.rng,
            staging=settings.data_dir / STAGING_DIRECTORY,
            architecture=platform.machine(),
            image=__version__,
            wake=node.outbox.wake,
        )
    )


class PackageFiles:
    """Packages as files, in the edge's words."""

    def __init__(self, settings: Settings, node: Node, teleport: Teleport | None) -> None:
        self._moves = teleport
        self._store = node.store
        self._rng = node.world.rng
        self._staging = settings.data_dir / STAGING_DIRECTORY
        self._identities = Identities(settings.data_dir / IDENTITY_FILE)

    @property
    def _teleport(self) -> Teleport:
        if self._moves is None:
            message = (
                "actors of a database's store cannot be moved one by one; copy the whole store"
            )
            raise UnavailableError(message)
        return self._moves

    async def back_up(self, target: Path, *, recipients: Sequence[str]) -> None:
        """Write a backup of the whole store to one new file, encrypted for its recipients.

        An empty list of recipients stands for this node's own.

        Raises:
            ConflictError: ``target`` exists.
            NotFoundError: There is no directory for the file, or no identity.
            DiskFullError: No space.
        """
        await _aside(partial(_require_place, target))
        readers = list(recipients) or [await _aside(self._identities.recipient)]
        async with self._folder() as folder:
            await self._store.backup(folder / "backup")
            whole = folder / "archive"
            await _aside(partial(pack_backup, folder / "backup", whole))
            await _aside(partial(_publish, whole, target, readers))

    async def export(
        self,
        actor: ActorId,
        target: Path,
        *,
        kind: PackageKind,
        recipients: Sequence[str] | None,
        principal: str,
    ) -> ExportOut:
        """Seal an actor and write its package to a new file; with recipients, encrypted for them.

        An empty list of recipients stands for this node's own.

        Raises:
            ConflictError: ``target`` exists, or the actor does not come to rest.
            NotFoundError: There is no such actor, or no directory for the file, or no identity.
        """
        await _aside(partial(_require_place, target))
        readers = None
        if recipients is not None:
            readers = list(recipients) or [await _aside(self._identities.recipient)]
        exporting = self._teleport.export(
            actor, kind=kind, destination=str(target), principal=principal
        )
        async with self._folder() as folder, exporting as export:
            whole = folder / "package"
            size_bytes = await write_chunks(export.chunks, whole)
            digest = await _aside(partial(digest_file, whole))
            await _aside(partial(_publish, whole, target, readers))
        return ExportOut(
            package=export.head.package,
            actor=actor_name(actor),
            kind=kind,
            target=str(target),
            size_bytes=size_bytes,
            digest=digest,
            encrypted=readers is not None,
            left_out=list(export.left_out),
        )

    async def receive(
        self, source: Path, *, workspace: str, tenant: Tenant, principal: str
    ) -> ImportOut:
        """Read a package's file and write its actor, held.

        Raises:
            NotFoundError: There is no such file, or no identity to decrypt it with.
            CorruptionError: It is damaged, or not for this node.
            ConflictError: Its actor cannot go on here.
        """
        if not await _aside(source.is_file):
            raise NotFoundError("package", str(source))
        async with self._folder() as folder:
            if await _aside(partial(is_encrypted, source)):
                plain = folder / "package"
                await _aside(partial(decrypt_file, source, plain, self._identities))
                source = plain
            async with aclosing(chunks_of(source)) as chunks:
                done = await self._teleport.receive(
                    chunks, tenant=tenant, principal=principal, workspace=workspace
                )
        return ImportOut(
            package=done.package,
            actor=actor_name(done.actor),
            incarnation=done.incarnation,
            workspace=done.workspace,
            digest=done.digest,
            warnings=list(done.warnings),
        )

    async def abort(self, actor: ActorId, *, principal: str) -> SealOut:
        """Take an export back."""
        return _view(await self._teleport.abort(actor, principal=principal), "open")

    async def confirm(self, actor: ActorId, *, principal: str) -> SealOut:
        """End an export: the actor is gone here."""
        return _view(await self._teleport.confirm(actor, principal=principal), "moved")

    async def release(self, actor: ActorId, *, principal: str) -> None:
        """Let an actor that arrived go on."""
        await self._teleport.release(actor, principal=principal)

    async def exports(self, tenant: Tenant) -> ExportPage:
        """Return a tenant's exports."""
        seals = await self._teleport.seals(tenant)
        return ExportPage(exports=[_view(seal, seal.state) for seal in seals])

    @asynccontextmanager
    async def _folder(self) -> AsyncGenerator[Path]:
        name = f"file-{derive_uuid(self._rng.bytes(16), 0)}"
        with typed_failures(self._staging):
            await _aside(partial(self._staging.mkdir, mode=0o700, parents=True, exist_ok=True))
            with temporary_directory(self._staging / name) as folder:
                yield folder


def _view(seal: Seal, state: str) -> SealOut:
    return SealOut(
        actor=actor_name(seal.actor),
        state=state,
        package=seal.package,
        destination=seal.destination,
        at_ms=seal.at_ms,
    )


def _require_place(target: Path) -> None:
    if not target.is_absolute():
        raise InvalidFieldError("body.target", "must be an absolute path")
    if target.exists():
        raise ConflictError(f"{target} exists; name a file that does not", path=str(target))
    if not target.parent.is_dir():
        raise NotFoundError("directory", str(target.parent))


def _publish(whole: Path, target: Path, recipients: Sequence[str] | None) -> None:
    """Give a whole package its name: encrypted or copied beside it, synced, then renamed."""
    with (
        typed_failures(target.parent),
        temporary_directory(target.with_name(f".{target.name}.partial")) as folder,
    ):
        ready = folder / "package"
        if recipients is None:
            ready.write_bytes(b"")
            ready.chmod(0o600)
            with whole.open("rb") as source, ready.open("wb") as copy:
                while piece := source.read(1 << 20):
                    copy.write(piece)
        else:
            encrypt_file(whole, ready, recipients)
            ready.chmod(0o600)
        sync_file(ready)
        ready.rename(target)
    sync_directory(target.parent)


async def _aside(job: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, job)
