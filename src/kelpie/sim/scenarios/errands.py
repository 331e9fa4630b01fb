"""Errands: clerks send each other numbered notes, set timers, and leave, while servers die.

Every note from one clerk to another carries the next number of its lane, so that a lost, doubled or
overtaken one is seen by whoever receives it. Handlers wait for each other's queries in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command, query, reminder
from kelpie.actors.api.reference import ref
from kelpie.actors.api.upcast import State
from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.incarnation import INCARNATION
from kelpie.sim.invariants.turns import TurnSeen
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

CLERKS: Final = 3
PAUSE_S_MAX: Final = 1.0
TIMER_MS_MAX: Final = 4_000
LEAVES: Final = 0.08
TIMERS: Final = 0.3
LOOKS_MAX: Final = 10

_turns: ContextVar[list[object] | None] = ContextVar("sim_turns", default=None)


class Lanes(State):
    """The newest number of every lane, and what went wrong in them."""

    sent: dict[str, int] = {}  # noqa: RUF012  a struct copies it
    taken: dict[str, int] = {}  # noqa: RUF012  a struct copies it
    wrong: list[str] = []  # noqa: RUF012  a struct copies it
    timers: int = 0
    rings: int = 0


@contextmanager
def _seen(actor: str) -> Generator[None]:
    """Let the world see when a command's handler begins and ends."""
    turns, life = _turns.get(), INCARNATION.get()
    if turns is None or life is None:
        yield
        return
    turns.append(TurnSeen(life.name, life.number, actor, has_begun=True))
    try:
        yield
    finally:
        turns.append(TurnSeen(life.name, life.number, actor, has_begun=False))


class SimClerk(Actor[Lanes]):
    """Sends notes and takes them."""

    actor_type = "sim-clerk"

    @command
    async def send_note(self, to: str) -> int:
        """Look at the other, then send it the next note of this lane; return its number."""
        with _seen(str(self.ctx.actor)):
            await self.ctx.call(ref(SimClerk, to).count)
            assert to != self.ctx.key, "nobody writes to themselves"
            number = self.state.sent.get(to, 0) + 1
            assert number >= 1, "notes are counted from one"
            self.state.sent[to] = number
            self.ctx.send(ref(SimClerk, to).take_note, self.ctx.key, number)
            return number

    @command
    def take_note(self, lane: str, number: int) -> None:
        """Take a note, which must be the next of its lane."""
        with _seen(str(self.ctx.actor)):
            expected = self.state.taken.get(lane, 0) + 1
            assert lane, "a note comes from somebody"
            assert number >= 1, "notes are counted from one"
            if number != expected:
                self.state.wrong.append(f"{lane}: {number} where {expected} was next")
            self.state.taken[lane] = number

    @command
    def set_timer(self, after_ms: int) -> int:
        """Have a timer ring; return how many were set."""
        with _seen(str(self.ctx.actor)):
            self.state.timers += 1
            name = f"timer-{self.state.timers}"
            self.ctx.kv.set(name, after_ms)
            self.ctx.remind(name, self.ctx.now_ms + after_ms, self.ring, name)
            return self.state.timers

    @reminder
    def ring(self, name: str) -> None:
        """Take a timer's ring."""
        self.state.rings += 1
        self.ctx.kv.delete(name)

    @command
    def leave(self) -> None:
        """Go; whoever is called by this name later is another."""
        self.ctx.delete()

    @query
    def count(self) -> tuple[int, int, list[str]]:
        """Return how many timers were set, how many rang, and what went wrong."""
        return self.state.timers, self.state.rings, self.state.wrong


class ErrandsScenario:
    """Clerks on one machine."""

    name = "errands"

    async def run(self, world: SimulatedWorld) -> None:
        """Send notes, heal, compare."""
        _turns.set(world.view.said.setdefault("turns", []))
        host = world.add_host("n1", actors=(SimClerk,))
        await world.unleash()
        async with asyncio.TaskGroup() as clients:
            for number in range(world.config.clients):
                clients.create_task(self._work(world, host, number), name=f"client-{number}")
        await settle(world)
        for clerk in range(CLERKS):
            await self._compare(world, host, f"k{clerk}")

    async def _work(self, world: SimulatedWorld, host: SimulatedHost, number: int) -> None:
        rng = world.stream(f"client:{number}")
        for turn in range(world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            clerk, other = rng.sample([f"k{each}" for each in range(CLERKS)], 2)
            drawn = rng.random()
            method, body = "send_note", dict[str, object](to=other)
            if drawn < LEAVES:
                # A lane to somebody new would begin anew: who leaves is nobody's correspondent.
                clerk, method, body = f"guest-{number}", "leave", {}
            elif drawn < LEAVES + TIMERS:
                clerk = rng.choice([clerk, f"guest-{number}"])
                method, body = "set_timer", {"after_ms": rng.randrange(TIMER_MS_MAX)}
            target = f"/v1/actors/{SimClerk.actor_type}/{clerk}/{method}"
            answer = await insist(host, "POST", target, body, key=f"client-{number}-{turn}")
            assert answer.status == 200, answer.body
            world.sometimes("a clerk left", method == "leave")

    async def _compare(self, world: SimulatedWorld, host: SimulatedHost, clerk: str) -> None:
        target = f"/v1/actors/{SimClerk.actor_type}/{clerk}/count"
        timers = rings = waiting = 0
        for look in range(LOOKS_MAX):
            answer = await insist(host, "POST", target, {}, key=f"look-{clerk}-{look}")
            timers, rings, wrong = answer.json()["result"]
            assert not wrong, f"{clerk}: {wrong[0]}"
            # One that was set while the clock was ahead waits for its time.
            reminders = world.view.book_of(host.name).rows.reminders
            waiting = sum(actor.endswith(f"/{clerk}") for actor, _, _ in reminders)
            if rings + waiting == timers:
                world.sometimes("a timer rang", rings > 0)
                return
            await asyncio.sleep(TIMER_MS_MAX / 1_000)
        raise AssertionError(f"{clerk}: {timers} timers were set, {rings} rang, {waiting} wait")
