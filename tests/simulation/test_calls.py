"""Submitted calls in the simulator, with the process dying at every step of their life.

A client submits under keys, takes some back, and asks for every end; when the process dies it does
the same again in the next one. What was said to it once must hold for good.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kelpie import Actor, Runtime, State, command, query
from kelpie.app.embed import EmbeddedWorld
from kelpie.core.errors import (
    ActorFailedError,
    CallBegunError,
    CallCancelledError,
    ConflictError,
)
from kelpie.ports.faults import faults_from
from kelpie.sim.loop import SimulatedCrash, SimulatedLoop
from kelpie.sim.world import RecordedTelemetry, SimulatedClock, SimulatedRng
from kelpie.storage.sqlite.store import SqliteStore

MEMORY_DISK = Path("/dev/shm")
SLICES = 6
END_S = 3_600.0  # virtual

pytestmark = [pytest.mark.requirement("CRASH-ANY-STEP"), pytest.mark.timeout(240)]


class Sum(State):
    """A sum, and how often it was changed."""

    total: int = 0
    turns: int = 0


class Adder(Actor[Sum]):
    """Adds at once, adds later, refuses, breaks."""

    @command
    def add(self, amount: int) -> int:
        """Add at once."""
        self.state.total += amount
        self.state.turns += 1
        return self.state.total

    @command
    async def add_later(self, amount: int) -> int:
        """Add after a while."""
        await asyncio.sleep(2)
        self.state.total += amount
        self.state.turns += 1
        return self.state.total

    @command
    def refuse(self) -> None:
        """Refuse on purpose."""
        self.state.turns += 1
        raise ConflictError("not today")

    @command
    def break_down(self) -> None:
        """Fail by mistake."""
        self.state.turns += 1
        raise ZeroDivisionError

    @query
    def seen(self) -> tuple[int, int]:
        """Return the sum and the number of turns."""
        return self.state.total, self.state.turns


@dataclass
class Client:
    """What a client was told, by the key of its submission; it outlives the processes."""

    ids: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)
    ends: dict[str, object] = field(default_factory=dict)
    seen: tuple[int, int] = (0, 0)

    async def live(self, runtime: Runtime) -> None:
        """Do what is left of the story, and everything of it again that has a key."""
        if "paused" not in self.ends:
            await runtime.pause(runtime.ref(Adder, "a"))
        for key, amount in (("k0", 1), ("k1", 10), ("k2", 100)):
            handle = await self._at(runtime, key).add.submit(amount)
            self._note(key, handle.call_id)
        later = await self._at(runtime, "k3").add_later.submit(1_000)
        self._note("k3", later.call_id)
        self._note("k4", (await self._at(runtime, "k4").refuse.submit()).call_id)
        self._note("k5", (await self._at(runtime, "k5", "b").break_down.submit()).call_id)
        await self._take_back(runtime, "k1")
        await runtime.resume(runtime.ref(Adder, "a"))
        self.ends["paused"] = False
        await self._await_ends(runtime)
        self.seen = await runtime.ref(Adder, "a").seen()
        assert await runtime.ref(Adder, "b").seen() == (0, 0)

    def _at(self, runtime: Runtime, key: str, actor: str = "a") -> Adder:
        return runtime.ref(Adder, actor, idempotency_key=key)

    def _note(self, key: str, call_id: str) -> None:
        assert self.ids.setdefault(key, call_id) == call_id, f"{key} became another call"

    async def _take_back(self, runtime: Runtime, key: str) -> None:
        handle = runtime.ref(Adder, "a").add.handle(self.ids[key])
        try:
            await handle.cancel()
            assert key not in self.begun, "a call that had begun was taken back"
            self.cancelled.add(key)
        except CallBegunError:
            assert key not in self.cancelled, "a call that was taken back has run"
            self.begun.add(key)

    async def _await_ends(self, runtime: Runtime) -> None:
        account, other = runtime.ref(Adder, "a"), runtime.ref(Adder, "b")
        handles = {key: account.add.handle(self.ids[key]) for key in ("k0", "k1", "k2")}
        handles["k3"] = account.add_later.handle(self.ids["k3"])
        for key, handle in handles.items():
            try:
                self._end(key, await handle.result(timeout_s=END_S))
            except CallCancelledError:
                self._end(key, "cancelled")
        with pytest.raises(ConflictError, match="not today"):
            await account.refuse.handle(self.ids["k4"]).result(timeout_s=END_S)
        with pytest.raises(ActorFailedError):
            await other.break_down.handle(self.ids["k5"]).result(timeout_s=END_S)

    def _end(self, key: str, end: object) -> None:
        assert self.ends.setdefault(key, end) == end, f"{key} ended twice"

    def judge(self) -> None:
        """Assert that the story ended as promised."""
        if "k1" in self.cancelled:
            assert self.ends["k1"] == "cancelled"
            assert [self.ends[key] for key in ("k0", "k2", "k3")] == [1, 101, 1101]
            assert self.seen == (1_101, 3)
        else:
            assert [self.ends[f"k{number}"] for number in range(4)] == [1, 11, 111, 1111]
            assert self.seen == (1_111, 4)


class Host:
    """One store, and the processes that hold it one after the other."""

    def __init__(self, path: Path) -> None:
        self.client = Client()
        self.steps = 0
        self._path = path
        self._now_s = 0.0
        self._lives = 0
        self._store: SqliteStore | None = None

    def live(self, *, crash_at: int = 0) -> bool:
        """Run one process to the end of the story, or until it dies at a step."""
        loop = SimulatedLoop(start_s=self._now_s)
        loop.crash_at = crash_at
        self._lives += 1
        try:
            loop.run_until_complete(self._life())
            survived = True
        except SimulatedCrash:
            survived = False
        self._now_s, self.steps = loop.time() + 1.0, loop.steps
        if not survived and self._store is not None:
            self._store.abandon()
        self._store = None
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.abandon()
        return survived

    async def _life(self) -> None:
        world = EmbeddedWorld(
            clock=SimulatedClock(),
            rng=SimulatedRng(self._lives),
            telemetry=RecordedTelemetry(),
        )
        async with Runtime.open(self._path, actors=[Adder], world=world) as runtime:
            store = runtime._store
            assert isinstance(store, SqliteStore)
            self._store = store
            await self.client.live(runtime)
            await asyncio.sleep(60)
            runtime.engine.check_invariants()
            assert (await store.stats()).outbox == 0


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory for many short-lived stores, in memory where the host has such a place."""
    base = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="kelpie-sim-", dir=base))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module", autouse=True)
def thawed() -> Iterator[None]:
    """Keep what was imported out of the collections that follow every simulated death."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def count_steps(disk: Path) -> int:
    """Live through the story without a crash; return how many steps it takes."""
    host = Host(disk / "calm.db")
    assert host.live()
    host.client.judge()
    assert host.client.cancelled == {"k1"}
    return host.steps


@pytest.mark.requirement("CALL-DURABLE", "CALL-ONCE", "CALL-KEY", "CALL-CANCEL", "CALL-ENDS")
@pytest.mark.parametrize("part", range(SLICES))
def test_every_promise_about_a_call_holds_when_the_process_dies_at_any_step(
    disk: Path, part: int
) -> None:
    last = count_steps(disk)
    assert last > 100, "the story is no story"
    for step in range(1 + part, last, SLICES):
        host = Host(disk / f"crash-{step}.db")
        host.live(crash_at=step)
        assert host.live(), "the last life has no crash"
        host.client.judge()
        for file in disk.glob(f"crash-{step}.db*"):
            if file.is_file():
                file.unlink()


class DoubleDelivery:
    """Delivers every message twice."""

    def __init__(self) -> None:
        self.count = 0

    def fires(self, name: str) -> bool:
        """Whether this is the fault."""
        self.count += name == "concurrency.duplicate_delivery"
        return name == "concurrency.duplicate_delivery"


@pytest.mark.requirement("CALL-ONCE")
def test_a_call_that_is_delivered_twice_has_one_turn_with_an_effect(disk: Path) -> None:
    source = DoubleDelivery()
    host = Host(disk / "double.db")
    with faults_from(source):
        assert host.live()
    host.client.judge()
    assert host.client.cancelled == {"k1"}
    assert source.count >= 5
