"""Actors that move between nodes which share no store: packed, sealed, imported, released.

An export waits until its actor rests, seals it in one commit, and packs what no turn can change any
more. The source stays sealed until a person confirms that the package arrived, or takes the export
back; a checkpoint opens it again at once. An import reads the whole package before it changes
anything: what is written before its one commit are contents that nothing names.

Invariants: a sealed actor takes no turn, and what is sent to it waits; an actor that arrived takes
none before it is released; a failed import leaves no actor, and no workspace that it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from kelpie.actors.engine import Engine
from kelpie.actors.pauses import Pauses
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.compatibility import (
    compare_architectures,
    compare_images,
    describe_difference,
)
from kelpie.cluster.container import write_container
from kelpie.cluster.package import (
    FORMAT,
    Contents,
    PackageHead,
    PackageKind,
    Packer,
    Tree,
    read_package,
)
from kelpie.core.digests import Digest
from kelpie.core.errors import (
    ActorMovedError,
    ConflictError,
    CorruptionError,
    FencedError,
    NotFoundError,
)
from kelpie.core.ids import ActorId, Tenant, derive_uuid
from kelpie.core.limits import EXPORT_REST_TIMEOUT_MS
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.storage.blobs import BlobStore
from kelpie.storage.files import sync_directory, temporary_directory, typed_failures
from kelpie.storage.moving import HELD_BY, Arrival, MoveStore, Seal
from kelpie.storage.protocol import Store
from kelpie.storage.records import EffectRow
from kelpie.storage.tables import ACTORS, EFFECTS, Row
from kelpie.storage.trees import TreeListing, build_tree, list_tree

T = TypeVar("T")

_LOOK_INTERVAL_S: Final = 0.05
_IS_OPEN: Final = EFFECTS.place("is_open")


class MovingStore(Store, MoveStore, Protocol):
    """A store whose actors can be moved."""


class Contained(Protocol):
    """What only the rooms above know of the bytes that a package carries."""

    def workspace_of(self, actor: ActorId, state: Row) -> str:
        """Return the actor's workspace directory; empty without one."""
        ...

    def relocate(self, actor: ActorId, state: Row, workspace: str) -> Row:
        """Return the row of an actor whose workspace lies elsewhere.

        Raises:
            CorruptionError: The state cannot be read.
        """
        ...

    def settle(self, effect: Row, now_ms: int) -> Row:
        """Return an effect as it arrives: what may run only once and was approved is unknown.

        Raises:
            CorruptionError: The effect cannot be read.
        """
        ...

    def require_workspace(self, path: Path) -> None:
        """Return if effects may touch a directory, which need not exist.

        Raises:
            InvalidFieldError: They may not.
        """
        ...

    def take_up(self, rows: tuple[EffectRow, ...]) -> None:
        """Go on with effects whose actor takes turns again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeleportDeps:
    """The collaborators of `Teleport`.

    Attributes:
        staging: A directory of this process's own, on the store's disk.
        architecture: This machine's.
        image: The version of what actors run on here.
        wake: Looks at the store for messages that no commit announced.
    """

    store: MovingStore
    blobs: BlobStore
    engine: Engine
    pauses: Pauses
    contained: Contained
    supervisor: Supervisor
    clock: Clock
    rng: Rng
    staging: Path
    architecture: str
    image: str
    wake: Callable[[], None]


class Export(NamedTuple):
    """A sealed actor's package; ``chunks`` are its bytes, to be read once."""

    head: PackageHead
    left_out: tuple[str, ...]
    chunks: AsyncGenerator[bytes]


class Imported(NamedTuple):
    """An actor that arrived, held. ``digest`` is its package's."""

    actor: ActorId
    package: str
    incarnation: int
    workspace: str
    digest: str
    warnings: tuple[str, ...]


class Teleport:
    """Exports and imports of one process's store."""

    def __init__(self, deps: TeleportDeps) -> None:
        self._deps = deps
        self._store = deps.store
        self._engine = deps.engine
        self._clock = deps.clock
        self._changing = asyncio.Lock()
        self._held: set[ActorId] = set()
        self._epochs = {grant.shard: grant.epoch for grant in deps.store.grants()}
        deps.engine.listen_resumed(self._on_resumed)

    async def load(self) -> None:
        """Let what is sent to sealed actors wait; to be done before anything is delivered."""
        for seal in await self._store.seals():
            if seal.state == "sealed" and self._engine.hosts(seal.actor.type):
                self._engine.pause(seal.actor)
        pauses = await self._store.pauses()
        self._held = {pause.actor for pause in pauses if pause.principal == HELD_BY}
        assert len(self._held) <= len(pauses), "who arrived is paused"
        assert self._held <= {pause.actor for pause in pauses}, "and nobody else"

    async def seals(self, tenant: Tenant) -> list[Seal]:
        """Return a tenant's exports that were not taken back, by actor."""
        return [seal for seal in await self._store.seals() if seal.actor.tenant == tenant]

    # --- export ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def export(
        self, actor: ActorId, *, kind: PackageKind, destination: str, principal: str
    ) -> AsyncGenerator[Export]:
        """Seal an actor and yield its package; the same again for one that is sealed.

        A checkpoint's source is open again at the end, however it comes; that of a move stays
        sealed, whatever becomes of the package.

        Raises:
            NotFoundError: There is no such actor, or its type is not hosted here.
            ConflictError: It does not come to rest: a handler or an effect goes on.
            ActorMovedError: It moved for good; or a checkpoint of a sealed actor.
        """
        async with self._changing:
            sealing = self._seal(actor, kind, destination, principal)
            seal = await self._deps.supervisor.finish("cluster.export", sealing)
            try:
                yield await self._pack(seal, kind)
            finally:
                if kind == "checkpoint":
                    opening = self._unseal(actor, principal)
                    await self._deps.supervisor.finish("cluster.reopen", opening)

    async def _seal(
        self, actor: ActorId, kind: PackageKind, destination: str, principal: str
    ) -> Seal:
        known = await self._find(actor)
        if known is not None and (kind == "checkpoint" or known.state == "moved"):
            raise ActorMovedError(
                str(actor),
                destination=known.destination,
                package=known.package,
                is_final=known.state == "moved",
            )
        epoch = self._epoch(actor)
        ends_ns = self._clock.boot_ns() + EXPORT_REST_TIMEOUT_MS * 1_000_000
        while True:
            was_paused = self._engine.is_paused(actor)
            self._engine.pause(actor)
            try:
                await self._rest(actor, ends_ns)
                seal = await self._store.seal_actor(
                    actor,
                    package=f"package-{derive_uuid(self._deps.rng.bytes(16), 0)}",
                    destination=destination,
                    principal=principal,
                    epoch=epoch,
                )
            except BaseException as error:
                if not was_paused:
                    self._engine.resume(actor)
                is_over = was_paused or self._clock.boot_ns() >= ends_ns
                if type(error) is not ConflictError or is_over:
                    raise
            else:
                self._engine.kill(actor)
                assert self._engine.is_paused(actor), "what is sent to it waits"
                return seal
            await self._clock.sleep(_LOOK_INTERVAL_S)

    async def _rest(self, actor: ActorId, ends_ns: int) -> None:
        """Return once no handler of the actor runs, and what it did is durable.

        Raises:
            ConflictError: That takes too long.
        """
        while True:
            seen = self._engine.inspect(actor)
            if not seen.handler and seen.version == seen.durable_version:
                return
            if self._clock.boot_ns() >= ends_ns:
                message = f"{actor} still runs {seen.handler or 'a turn'}; try again later"
                raise ConflictError(message, actor=str(actor))
            await self._clock.sleep(_LOOK_INTERVAL_S)

    async def _pack(self, seal: Seal, kind: PackageKind) -> Export:
        (state,) = await self._store.actor_rows(seal.actor, ACTORS, after=None, limit=1)
        directory = self._deps.contained.workspace_of(seal.actor, state)
        root, tree = None, None
        if directory:
            root = Path(directory)
            if not root.is_dir():
                raise NotFoundError("workspace", directory, hint="make it, or abort the export")
            listing = await _aside(partial(list_tree, root))
            tree = Tree(entries=listing.entries, left_out=listing.left_out)
        head = PackageHead(
            format=FORMAT,
            package=seal.package,
            kind=kind,
            actor=str(seal.actor),
            architecture=self._deps.architecture,
            image=self._deps.image,
            workspace=directory,
            created_ms=seal.at_ms,
        )
        parts = Packer(self._store, self._deps.blobs, seal.actor).parts(root, tree)
        chunks = write_container(msgspec.to_builtins(head), parts)
        return Export(head, tree.left_out if tree else (), chunks)

    async def abort(self, actor: ActorId, *, principal: str) -> Seal:
        """Take an export back: the actor goes on here.

        Raises:
            NotFoundError: It was not exported from here.
            ActorMovedError: The export was confirmed.
        """
        async with self._changing:
            opening = self._unseal(actor, principal)
            return await self._deps.supervisor.finish("cluster.abort", opening)

    async def _unseal(self, actor: ActorId, principal: str) -> Seal:
        epoch = self._epoch(actor)
        was = await self._store.unseal_actor(actor, principal=principal, epoch=epoch)
        paused = {pause.actor for pause in await self._store.pauses()}
        if actor not in paused and self._engine.is_paused(actor):
            self._engine.resume(actor)
            await self._take_up(actor)
        return was

    async def confirm(self, actor: ActorId, *, principal: str) -> Seal:
        """End an export: the actor is gone here, and what was sent to it since is a dead letter.

        Raises:
            NotFoundError: It was not exported from here.
        """
        async with self._changing:
            return await self._deps.supervisor.finish(
                "cluster.confirm", self._confirm(actor, principal)
            )

    async def _confirm(self, actor: ActorId, principal: str) -> Seal:
        epoch = self._epoch(actor)
        seal = await self._store.confirm_move(actor, principal=principal, epoch=epoch)
        if self._engine.is_paused(actor):
            self._engine.resume(actor)
        self._engine.kill(actor)
        return seal

    # --- import ---------------------------------------------------------------------------------

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        *,
        tenant: Tenant,
        principal: str,
        workspace: str = "",
    ) -> Imported:
        """Read a package and write its actor, held; all of it, or nothing.

        Args:
            chunks: The package's bytes.
            tenant: Whose actor it must be.
            principal: Who imports it.
            workspace: Where its workspace shall lie; where it lay if empty.

        Raises:
            CorruptionError: The package is cut short, damaged, or says what cannot be.
            LimitExceededError: It is larger than a package may be.
            ConflictError: Its actor lives here, it arrived before, it is of another architecture
                or version, or its workspace's directory holds something else.
            NotFoundError: Its actor's type is not hosted here.
        """
        folder = self._deps.staging / f"import-{derive_uuid(self._deps.rng.bytes(16), 0)}"
        self._deps.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        with typed_failures(self._deps.staging), temporary_directory(folder):
            contents = await read_package(chunks, folder)
            warnings = self._require_fit(contents, tenant)
            async with self._changing:
                arriving = self._arrive(contents, workspace, principal)
                done = await self._deps.supervisor.finish("cluster.import", arriving)
        return done._replace(warnings=warnings)

    def _require_fit(self, contents: Contents, tenant: Tenant) -> tuple[str, ...]:
        """Return what a person should know; raise if the package cannot go on here."""
        head, deps = contents.head, self._deps
        if contents.actor.tenant != tenant or not self._engine.hosts(contents.actor.type):
            raise NotFoundError("actor type", f"{contents.actor.tenant}/{contents.actor.type}")
        if compare_architectures(head.architecture, deps.architecture) == "refuse":
            found = describe_difference("architecture", head.architecture, deps.architecture)
            raise ConflictError(f"{found}; import it on a machine like its own")
        found = describe_difference("version", head.image, deps.image)
        match compare_images(head.image, deps.image):
            case "refuse":
                raise ConflictError(f"{found}; MAJOR.MINOR must be the same")
            case "warn":
                return (found,)
            case "same":
                return ()

    async def _arrive(self, contents: Contents, workspace: str, principal: str) -> Imported:
        actor, deps = contents.actor, self._deps
        now_ms = self._clock.now_ms()
        contained = deps.contained
        place = contents.head.workspace and (workspace or contents.head.workspace)
        effects = contents.rows.get(EFFECTS.name, [])
        if place != contents.head.workspace and any(row[_IS_OPEN] for row in effects):
            message = f"an open effect of {actor} names its workspace {contents.head.workspace}"
            raise ConflictError(f"{message}; answer it before the export, or leave --workspace out")
        state = contained.relocate(actor, contents.state, place)
        contents.rows[EFFECTS.name] = [contained.settle(row, now_ms) for row in effects]
        arrival = Arrival(actor, contents.head.package, state, contents.rows, principal, now_ms)
        blobs = [path for name, path in contents.files.items() if name.startswith("blob/")]
        await _aside(partial(deps.blobs.put_many, blobs))
        made = await self._place(contents, place)
        was_paused = self._engine.is_paused(actor)
        self._engine.pause(actor)
        try:
            incarnation = await self._store.import_actor(arrival, epoch=self._epoch(actor))
        except BaseException:
            if not was_paused:
                self._engine.resume(actor)
            if made is not None:
                await _aside(partial(shutil.rmtree, made, ignore_errors=True))
            raise
        self._held.add(actor)
        self._engine.kill(actor)
        deps.wake()
        package, digest = contents.head.package, contents.digest
        assert self._engine.is_paused(actor), "nothing of it goes on before its release"
        return Imported(actor, package, incarnation, place, digest, ())

    async def _place(self, contents: Contents, place: str) -> Path | None:
        """Make the workspace, and return it; None if there is none to make, or it is there."""
        if contents.tree is None:
            if place:
                raise CorruptionError("the package names a workspace, and holds none")
            return None
        target = Path(place)
        self._deps.contained.require_workspace(target)
        tree = contents.tree
        found = await _aside(partial(_list_if_any, target))
        if found is not None:
            if found.entries != tree.entries:
                message = f"{place} holds something else; name another directory (--workspace)"
                raise ConflictError(message, path=place)
            return None
        content = partial(_content, contents.files)
        await _aside(partial(_build, tree, target, content))
        return target

    async def release(self, actor: ActorId, *, principal: str) -> None:
        """Let an actor that arrived go on; harmless when it was released before.

        Raises:
            StoreError: The release could not be kept.
        """
        await self._deps.pauses.resume(actor, principal=principal)

    def _on_resumed(self, actor: ActorId) -> None:
        if actor in self._held:
            self._held.discard(actor)
            self._deps.supervisor.spawn(f"cluster.take_up:{actor}", self._take_up(actor))

    async def _take_up(self, actor: ActorId) -> None:
        with contextlib.suppress(ActorMovedError):
            stored = await self._store.load(actor)
            if stored is not None:
                self._deps.contained.take_up(stored.effects)

    # --- plumbing -------------------------------------------------------------------------------

    async def _find(self, actor: ActorId) -> Seal | None:
        found = [seal for seal in await self._store.seals() if seal.actor == actor]
        return found[0] if found else None

    def _epoch(self, actor: ActorId) -> int:
        epoch = self._epochs.get(actor.shard)
        if epoch is None:
            raise FencedError(f"this node does not own the shard of {actor}")
        return epoch


def _content(files: dict[str, Path], digest: Digest) -> Path:
    return files[f"file/{digest.removeprefix('sha256:')}"]


def _list_if_any(target: Path) -> TreeListing | None:
    """Return what lies in a directory; None if nothing does."""
    return list_tree(target) if target.is_dir() and any(target.iterdir()) else None


def _build(tree: Tree, target: Path, content: Callable[[Digest], Path]) -> None:
    """Make the directory under a name of its own, then give it its name: whole, or not there."""
    if not target.parent.is_dir():
        raise NotFoundError("directory", str(target.parent))
    partial_path = target.with_name(f".{target.name}.kelpie-partial")
    with typed_failures(target.parent), temporary_directory(partial_path) as folder:
        build_tree(tree.entries, folder, content)
        folder.chmod(0o755)
        folder.rename(target)
    sync_directory(target.parent)


async def _aside(job: Callable[[], T]) -> T:
    """Run a job that blocks on the disk off the event loop."""
    running: Awaitable[T] = asyncio.get_running_loop().run_in_executor(None, job)
    return await running
