"""Simulated machines: their files and clocks outlive the programs that live and die on them.

Owns starting, killing, pausing and stopping a program, and asking it over HTTP. What a program is,
is an async context manager over the machine; `serve_product` is the product as it ships.

Invariants: one program at a time; a killed program acts on nothing any more; its files stay as the
kernel had them, unless the crash says what the disk made of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Protocol, cast

from kelpie.actors.api.definition import Actor
from kelpie.app.opened import App, open_app
from kelpie.app.stores import SharedNodeStore
from kelpie.app.world import World, open_sqlite
from kelpie.core.dsn import Dsn
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.network import NetworkError
from kelpie.ports.rng import Rng
from kelpie.settings import Settings, load_settings
from kelpie.sim.book import Book, StoreSeen, read_store
from kelpie.sim.clock import NANOSECONDS_PER_MS, MachineClock, SimulatedClock
from kelpie.sim.database import CLUSTER_SECRET, Batch, DatabaseService, SharedStore
from kelpie.sim.edge import HttpAnswer, ask
from kelpie.sim.faults.plan import FaultPlan
from kelpie.sim.frames import SimulatedFrames, SimulatedWires
from kelpie.sim.incarnation import Incarnation
from kelpie.sim.loop import SimulatedCrash, SimulatedLoop, attempt
from kelpie.sim.network import OUTSIDE, SimulatedNetwork
from kelpie.sim.observe import InFlight, ObservedStore
from kelpie.sim.ownerships import SharedSqlite
from kelpie.sim.rng import SimulatedRng
from kelpie.sim.sandbox import Program, SimulatedSandbox
from kelpie.sim.telemetry import RecordedTelemetry
from kelpie.sim.view import AnswerSeen, LeaseSeen
from kelpie.storage.blobs import BlobStore
from kelpie.storage.records import Commit, CommitReceipt, StoredActor
from kelpie.storage.sqlite.store import SqliteStore


class DiskContent(Protocol):
    """What a disk holds after a crash, taken before the dead program is unwound."""

    def put(self, root: Path) -> None:
        """Let ``root`` hold exactly this."""
        ...


PATIENCE_S: Final = 60.0  # as long as clients wait for an answer

CrashImage = Callable[[Path], DiskContent]
"""Given the machine's directory at the instant of a crash, return what the disk kept of it."""

ServedProgram = Callable[["SimulatedHost"], AbstractAsyncContextManager[Any]]
"""What runs on a machine; yields its service once it is ready."""


class ProgramDiedError(NetworkError):
    """The simulated program died or ended before it was ready."""


class Surroundings(Protocol):
    """What a machine needs of its world; one world has it all."""

    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def loop(self) -> SimulatedLoop:
        """The loop that runs everything."""
        ...

    @property
    def network(self) -> SimulatedNetwork:
        """The network between machines, models and clients."""
        ...

    @property
    def plan(self) -> FaultPlan:
        """What may go wrong."""
        ...

    @property
    def wires(self) -> SimulatedWires:
        """The connections between nodes."""
        ...

    @property
    def programs(self) -> Mapping[str, Program]:
        """What can be run in sandboxes, by name."""
        ...

    @property
    def commands_started(self) -> list[str]:
        """What was run in sandboxes."""
        ...

    def landed(
        self, host: str, session: str, commit: Commit, receipt: CommitReceipt | None
    ) -> None:
        """Take a durable commit into account."""
        ...

    def loaded(self, host: str, actor: ActorId, seen: int, stored: StoredActor | None) -> None:
        """Take into account what a store answered to a read."""
        ...

    def leased(self, seen: LeaseSeen) -> None:
        """Take into account what became of a session or of shards."""
        ...

    def looked(self, seen: StoreSeen) -> None:
        """Take into account what is in a store's file."""
        ...

    def released(self, host: str) -> None:
        """Take into account that a restored store may drive its work now."""
        ...

    def book_of(self, host: str) -> Book:
        """Return what a machine's store should hold."""
        ...

    def answered(self, seen: AnswerSeen) -> None:
        """Take into account what a client was told."""
        ...

    def commits_seen(self) -> int:
        """Return how many durable commits there were."""
        ...

    def fail(self, invariant: str, text: str) -> None:
        """Say what is wrong and end the run."""
        ...


def serve_product(host: SimulatedHost) -> AbstractAsyncContextManager[App]:
    """Run the product as it ships, with the machine's actor classes."""
    return open_app(host.settings(), drive=True, world=host.ports(), actors=host.actors)


class SimulatedHost:
    """One simulated machine.

    Attributes:
        name: Its name.
        directory: Where its files are.
        clock: Its clocks.
        actors: The classes that the product hosts on it.
        environment: What settings are read from, beside the flags.
        lives: How often a program was started.
        incarnation: The life that goes on now; None while nothing runs.
        service: What the program yielded once it was ready; None before and after.
        telemetry: What all its programs reported.
    """

    def __init__(
        self,
        world: Surroundings,
        name: str,
        directory: Path,
        *,
        actors: Sequence[type[Actor[Any]]] = (),
        program: ServedProgram = serve_product,
        flags: Mapping[str, Any] | None = None,
        database: SimulatedHost | None = None,
    ) -> None:
        self.name = name
        self.database = database
        self.batches: dict[str, Batch] = {}
        self.directory = directory
        self.clock = MachineClock(lambda: world.loop.now_ns)
        self.actors = tuple(actors)
        self.environment = {"OPENAI_API_KEY": "sim", "OPENAI_BASE_URL": "http://model.sim/v1"}
        self.lives = 0
        self.incarnation: Incarnation | None = None
        self.service: Any = None
        self.telemetry = RecordedTelemetry()
        self._world = world
        self._program = program
        self._flags = dict(flags or {})
        self._stores: list[SqliteStore] = []
        self._store_path = directory
        self._in_flight = InFlight()
        self._ready: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._stop = asyncio.Event()
        self._callers: dict[asyncio.Future[Any], asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._messages: dict[asyncio.Task[None], None] = {}

    # --- what the program sees ------------------------------------------------------------------

    def settings(self) -> Settings:
        """Return the product's settings on this machine."""
        flags = {"data_dir": str(self.directory / "data"), **self._flags}
        flags.setdefault("workspaces.roots", str(self.directory))
        return load_settings(
            environment=self.environment, cwd=self.directory, home=self.directory, flags=flags
        )

    def ports(self) -> World:
        """Return the ports of the life that begins now."""
        rng = SimulatedRng(f"{self._world.seed}:{self.name}:{self.lives}")
        return World(
            clock=SimulatedClock(self.clock),
            rng=rng,
            network=self._world.network.of(self.name),
            telemetry=self.telemetry,
            environment={"OPENAI_API_KEY": "sim", "SIM_SECRET": CLUSTER_SECRET.decode()},
            open_store=self._open_store,
            open_database=self._open_database,
            frames=lambda _: SimulatedFrames(self._world.wires, host=self.name),
            open_sandbox=lambda blobs, _: SimulatedSandbox(
                self._world.programs, blobs, self._world.commands_started, self._world.plan
            ),
            metrics_text=lambda: "",
        )

    async def _open_store(self, path: Path, address: str, clock: Clock, rng: Rng) -> SqliteStore:
        store = await open_sqlite(path, address, clock, rng)
        # The product names the engine's class; the observer is it in all but the class.
        return cast("SqliteStore", await self._observe(store, path))

    async def _observe(self, store: SqliteStore, path: Path) -> ObservedStore:
        self._stores.append(store)
        self._store_path = path
        observed = ObservedStore(
            store,
            self._in_flight,
            partial(self._world.landed, self.name),
            loaded=partial(self._world.loaded, self.name),
            commits=self._world.commits_seen,
            released=partial(self._world.released, self.name),
            book=partial(self._world.book_of, self.name),
        )
        with self._world.plan.calm():
            await observed.recover()
        self.look(is_rest=False)
        return observed

    @asynccontextmanager
    async def _open_database(
        self, settings: Settings, dsn: Dsn, address: str
    ) -> AsyncGenerator[SharedNodeStore]:
        """Yield this node's side of the database it shares."""
        del dsn, address
        assert self.database is not None, "a machine with a database is told which"
        settings.store.path.parent.mkdir(parents=True, exist_ok=True)
        blobs = BlobStore(settings.data_dir / "blobs")
        client = f"{self.name}.{self.lives}"
        store = SharedStore(self.database, source=self.name, client=client, blobs=blobs)
        try:
            # The product names the protocol; what is asked for is the database's to answer.
            yield cast("SharedNodeStore", store)
        finally:
            await store.close()

    async def open_database(self) -> ObservedStore:
        """Open the store that other machines share, for the program of this one."""
        ports = self.ports()
        path = self.directory / "data" / "kelpie.db"
        path.parent.mkdir(exist_ok=True)
        store = await SharedSqlite.open(path, clock=ports.clock, rng=ports.rng, node="")
        assert isinstance(store, SharedSqlite), "a class opens its own"
        store.watch(self.name, self._world.leased)
        return await self._observe(store, path)

    @property
    def store_name(self) -> str:
        """The machine that has this machine's store: itself, or the database it shares."""
        return self.name if self.database is None else self.database.store_name

    def look(self, *, is_rest: bool) -> None:
        """Let the world see what is in the store's file."""
        seen = read_store(
            self._store_path,
            host=self.name,
            session=self._stores[-1].session,
            now_ms=self.clock.wall_ns() // NANOSECONDS_PER_MS,
            is_rest=is_rest,
        )
        self._world.looked(seen)

    @property
    def is_writing(self) -> bool:
        """Whether commits are on their way whose outcome nobody knows yet."""
        return not self._in_flight.is_empty

    # --- life and death -------------------------------------------------------------------------

    @property
    def is_serving(self) -> bool:
        """Whether a program runs and was ready."""
        return self.service is not None

    @property
    def has_failed(self) -> bool:
        """Whether the program has said that it must be started anew: its store stopped."""
        service = self.service
        if isinstance(service, DatabaseService):
            return service.has_failed
        return isinstance(service, App) and service.node.failure is not None

    async def start(self) -> None:
        """Start the program and return once it is ready.

        Raises:
            ProgramDiedError: It was killed before.
            Exception: What the program raised while it started.
        """
        assert self.incarnation is None, "one program at a time"
        self.lives += 1
        self._stop = asyncio.Event()
        loop = self._world.loop
        ready = self._ready = loop.create_future()
        self._ended = loop.create_future()
        self.incarnation = Incarnation(self.name, self.lives, self.clock)
        name = f"{self.name}.{self.lives}"
        self._task = loop.create_task(self._live(), name=name, context=self.incarnation.context())
        await ready
        assert self.service is not None or self.lives > 0

    async def _live(self) -> None:
        ready, ended = self._ready, self._ended
        assert ready is not None, "a life is waited for"
        assert ended is not None, "a life ends"
        life = self.incarnation
        failure = await attempt(self._serve_until_stopped(ready))
        if life is None or life.dead:
            return  # what clean-up meets in a dead program is nobody's
        self._gone()
        self._exit(life)
        if failure is None or ready.cancelled():
            ended.set_result(None)
        elif not ready.done():
            ready.set_exception(failure)
        else:
            self._world.fail("program-ends-in-order", f"{self.name}: {failure!r}")

    def _exit(self, life: Incarnation | None) -> None:
        """End with a program that ended what it left running, as the end of a process does."""
        loop, this = self._world.loop, asyncio.current_task()
        if life is None or all(task.done() or task is this for task in life.births):
            return
        loop.at_step(loop.steps + 1, partial(loop.kill, life))

    async def _serve_until_stopped(self, ready: asyncio.Future[None]) -> None:
        async with self._program(self) as service:
            self.service = service
            if not ready.done():  # nobody waits any more for a start that was given up
                ready.set_result(None)
            await self._stop.wait()
            self.service = None

    async def stop(self) -> None:
        """Ask the program to end, as SIGTERM does, and return once it has; harmless when gone."""
        if self.incarnation is None or self._ended is None:
            return
        ended = self._ended
        self._stop.set()
        await ended
        assert self.incarnation is None, "a program that ended is gone"

    def crash(self, image: CrashImage | None = None) -> None:
        """Kill the program, as SIGKILL does; harmless when nothing runs.

        Args:
            image: What the disk kept, as after a power cut; what the kernel had when None.
        """
        self._crash((image or _KilledFiles.capture)(self.directory))

    def die(self, image: CrashImage | None = None) -> NoReturn:
        """Kill the program from within, at this very line.

        Raises:
            SimulatedCrash: Always: what is on the stack ends with the program.
        """
        assert self.incarnation is not None, "nothing runs that could die"
        content = (image or _KilledFiles.capture)(self.directory)
        loop = self._world.loop
        loop.at_step(loop.steps + 1, partial(self._crash, content))
        raise SimulatedCrash

    def _crash(self, content: DiskContent) -> None:
        incarnation = self.incarnation
        if incarnation is None:
            return
        self._drop_callers()
        for store in self._stores:
            store.abandon()
        self._world.loop.kill(incarnation)
        ready, ended = self._ready, self._ended
        self._gone()
        _release_holder(self.directory)
        content.put(self.directory)
        if ready is not None and not ready.done():
            ready.set_exception(ProgramDiedError(f"{self.name} died as it started", sent=False))
        if ended is not None and not ended.done():
            ended.set_result(None)
        assert self.incarnation is None, "a killed program is gone"

    def _gone(self) -> None:
        """Nothing runs any more."""
        self.incarnation = None
        self.service = None
        self._task = None
        self._stores.clear()
        self._messages.clear()
        self._drop_callers()

    def _drop_callers(self) -> None:
        callers, self._callers = self._callers, {}
        for caller in callers:
            if not caller.done():
                caller.set_exception(NetworkError(f"{self.name} closed the connection", sent=True))

    def pause(self) -> None:
        """Stop the program between two callbacks, as SIGSTOP does; its clocks go on."""
        if self.incarnation is not None:
            self._world.loop.pause(self.incarnation)

    def resume(self) -> None:
        """Let a stopped program go on."""
        if self.incarnation is not None:
            self._world.loop.resume(self.incarnation)

    def set_clock(
        self, *, rate_ppm: int | None = None, wall_ns: int = 0, ahead_ns: int = 0
    ) -> None:
        """Change the clocks: their rate, the wall clock alone, or both ahead."""
        before = self.clock.changes
        if rate_ppm is not None:
            self.clock.set_rate(rate_ppm)
        if wall_ns:
            self.clock.jump_wall(wall_ns)
        if ahead_ns:
            self.clock.jump_forward(ahead_ns)
        if self.incarnation is not None:
            self._world.loop.retime(self.incarnation)
        assert self.clock.changes > before, "nothing was to be changed"
        assert self.clock.monotonic_ns() >= 0

    def run_in_program(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` as part of the program, with which it dies: a message that arrived."""
        assert self.incarnation is not None, "no program runs"
        task = self._world.loop.create_task(work, name=name, context=self.incarnation.context())
        self._messages[task] = None
        task.add_done_callback(lambda done: self._messages.pop(done, None))
        assert task in self._messages

    # --- asked over HTTP ------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Ask the product as a client would and return the whole answer.

        Raises:
            NetworkError: Nobody listens, the connection was lost before the answer, or it took
                longer than a client waits.
        """
        asked_ns = self._world.loop.now_ns
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._world.network.links.pass_through(OUTSIDE, self.name)
                answer: HttpAnswer = await self._exchange(
                    method,
                    lambda service, left: ask(
                        service.asgi, method, target, body, key=key, headers=headers, left=left
                    ),
                )
                await self._world.network.links.pass_through(self.name, OUTSIDE)
        except TimeoutError:
            raise NetworkError(f"{self.name} is silent", sent=True) from None
        now_ns = self._world.loop.now_ns
        seen = AnswerSeen(self.store_name, method, target, key, answer, asked_ns, now_ns)
        self._world.answered(seen)
        return answer

    async def consult(
        self,
        source: str,
        title: str,
        work: Callable[[Any], Awaitable[Any]],
        *,
        patience_s: float = PATIENCE_S,
    ) -> Any:
        """Have the program of this machine do ``work`` with its service, asked from ``source``.

        Raises:
            NetworkError: Nobody listens, the connection was lost, or it took too long; unless the
                error says that nothing was sent, the work may have been done.
        """
        links = self._world.network.links
        try:
            async with asyncio.timeout(patience_s):
                await links.pass_through(source, self.name)
                answer = await self._exchange(title, lambda service, _left: work(service))
                await links.pass_through(self.name, source)
                return answer
        except TimeoutError:
            raise NetworkError(f"{self.name} is silent", sent=True) from None

    async def _exchange(
        self, title: str, send: Callable[[Any, asyncio.Event], Awaitable[Any]]
    ) -> Any:
        incarnation, service = self.incarnation, self.service
        if incarnation is None or service is None:
            raise NetworkError(f"{self.name} refuses connections", sent=False)
        loop = self._world.loop
        caller: asyncio.Future[Any] = loop.create_future()
        left = asyncio.Event()
        work = partial(send, service, left)
        self._callers[caller] = loop.create_task(
            _serve(work, caller), name=f"request:{title}", context=incarnation.context()
        )
        try:
            return await caller
        finally:
            self._callers.pop(caller, None)
            left.set()


async def _serve(work: Callable[[], Awaitable[Any]], caller: asyncio.Future[Any]) -> None:
    answer = await attempt(work())
    if caller.done():
        return
    if isinstance(answer, Exception):
        caller.set_exception(answer)
    else:
        caller.set_result(answer)


class _KilledFiles(NamedTuple):
    """The files beside a killed program's store, as the kernel has them.

    Closing its connections changes them, which a killed program does not do.
    """

    contents: tuple[tuple[Path, bytes], ...]

    @classmethod
    def capture(cls, root: Path) -> _KilledFiles:
        """Return the database and its log."""
        return cls(tuple((path, path.read_bytes()) for path in _store_files(root)))

    def put(self, root: Path) -> None:
        """Write them back, without the index that whoever opens the store makes anew."""
        kept = dict(self.contents)
        for path in _store_files(root):
            if path not in kept:
                path.unlink()
        for path, content in self.contents:
            if path.name.endswith("-shm"):
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


def _store_files(root: Path) -> list[Path]:
    found = sorted(root.glob("data/*.db*"))
    return [path for path in found if path.is_file() and not path.name.endswith(".holder")]


def _open_below(directory: Path) -> dict[int, str]:
    """Return the descriptors that this process has open below ``directory``."""
    found: dict[int, str] = {}
    for entry in sorted(os.listdir("/proc/self/fd")):  # noqa: PTH208  numbers, not paths
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
        except OSError:
            continue
        if target.startswith(f"{directory}/"):
            found[int(entry)] = target
    return found


def _release_holder(directory: Path) -> None:
    """Close what the kernel would close: the lock of a store that was being opened or closed."""
    open_now = _open_below(directory)
    for descriptor, target in open_now.items():
        if target.endswith(".holder"):
            os.close(descriptor)
    if any(not target.endswith(".holder") for target in open_now.values()):
        gc.collect()  # connections of a store that was being opened or closed
    assert not _open_below(directory), f"a dead program keeps files open: {_open_below(directory)}"
