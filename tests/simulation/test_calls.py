"""Submitted calls in the simulator, with the process dying at every step of their life.

A client submits under keys, takes some back, and asks for every end; when the process dies it does
the same again in the next one. What was said to it once must hold for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from kelpie import Actor, Runtime, State, command, query
from kelpie.app.embed import EmbeddedWorld
from kelpie.core.errors import (
    ActorFailedError,
    CallBegunError,
    CallCancelledError,
    ConflictError,
)
from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.host import SimulatedHost
from kelpie.sim.run import RunReport
from kelpie.sim.swarm import RunConfig
from kelpie.sim.world import SimulatedWorld
from tests.simulation.runs import live, require_clean

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


@asynccontextmanager
async def embed(host: SimulatedHost) -> AsyncGenerator[Runtime]:
    """Run an embedded runtime as a machine's program."""
    ports = host.ports()
    world = EmbeddedWorld(
        clock=ports.clock,
        rng=ports.rng,
        telemetry=ports.telemetry,
        open_store=ports.open_store,
    )
    path = host.directory / "data" / "calls.db"
    async with Runtime.open(path, actors=[Adder], world=world) as runtime:
        yield runtime


class CallsScenario:
    """One machine, and a client in its program that does not rest before its story is told."""

    name = "submitted-calls"

    def __init__(self) -> None:
        self.client = Client()
        self._is_told = False
        self._failure: BaseException | None = None

    async def run(self, world: SimulatedWorld) -> None:
        """Tell the story, in as many lives as it takes."""
        host = world.add_host("n1", program=embed)
        await world.unleash()
        lives = 0
        while not self._is_told:
            if self._failure is not None:
                raise self._failure
            if host.lives > lives and host.is_serving:
                lives = host.lives
                host.run_in_program("client", self._tell(host))
            await asyncio.sleep(0.5)
        await world.heal()
        self.client.judge()

    async def _tell(self, host: SimulatedHost) -> None:
        runtime: Runtime = host.service
        try:
            await self.client.live(runtime)
            await asyncio.sleep(60)
            runtime.engine.check_invariants()
            assert (await runtime._store.stats()).outbox == 0
            self._is_told = True
        except Exception as error:  # noqa: BLE001  the scenario raises it
            self._failure = error


def tell(*crash_steps: int, rules: tuple[FaultRule, ...] = ()) -> tuple[RunReport, Client]:
    """Live through the story, dying at these steps of the program."""
    scenario = CallsScenario()
    config = RunConfig(crash_steps=crash_steps, rules=rules)
    return require_clean(live(scenario, 0, config)), scenario.client


@pytest.mark.requirement("CALL-DURABLE", "CALL-ONCE", "CALL-KEY", "CALL-CANCEL", "CALL-ENDS")
@pytest.mark.parametrize("part", range(SLICES))
def test_every_promise_about_a_call_holds_when_the_process_dies_at_any_step(part: int) -> None:
    calm, client = tell()
    assert client.cancelled == {"k1"}
    assert calm.program_steps > 100, "the story is no story"
    for step in range(1 + part, calm.program_steps + 1, SLICES):
        report, client = tell(step)
        assert report.program_steps > step, f"nothing happened after the crash at {step}"
        assert client.ids, "a client that submitted nothing proves nothing"


@pytest.mark.requirement("CALL-ONCE")
def test_a_call_that_is_delivered_twice_has_one_turn_with_an_effect() -> None:
    rule = FaultRule(name="concurrency.duplicate_delivery", rate=1.0, count_max=100)
    report, client = tell(rules=(rule,))
    assert client.cancelled == {"k1"}
    assert report.injected["concurrency.duplicate_delivery"] >= 5
