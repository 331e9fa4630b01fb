"""What goes wrong beside the fault points: processes die, stop and go on, clocks jump.

Drawn from the seed before anything happens, so that a shrinker can leave events out without moving
the others.

Invariants: after `Chaos.heal` nothing goes wrong any more and every machine runs.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final, Literal, NamedTuple, Protocol

from kelpie.core.errors import KelpieError
from kelpie.sim.clock import NANOSECONDS_PER_MS, NANOSECONDS_PER_SECOND
from kelpie.sim.host import CrashImage, ProgramDiedError, SimulatedHost
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.rng import stream
from kelpie.sim.swarm import RunConfig

STEPS_AHEAD_MAX: Final = 400  # a process dies within so many steps of its hour
DOWN_S_MAX: Final = 5.0
RESTART_S: Final = 1.0
PAUSE_S_MAX: Final = 40.0  # beyond every deadline of a call
WALL_JUMP_MS_MAX: Final = 3_600_000
RATE_PPM_BOUND: Final = 100_000
JUMP_AHEAD_MS_MAX: Final = 60_000

EventKind = Literal["crash", "pause", "wall-jump", "jump-ahead", "clock-rate"]


class ChaosEvent(NamedTuple):
    """One thing that goes wrong.

    Attributes:
        amount: Steps to wait and then ms until the restart for a crash, ms for a pause or a jump,
            parts per million for a rate.
    """

    at_ms: int
    kind: EventKind
    host: str
    amount: int
    delay_steps: int = 0

    def describe(self) -> str:
        """Return the event for people."""
        unit = "ppm" if self.kind == "clock-rate" else "ms"
        return f"{self.kind} {self.host} at {self.at_ms} ms ({self.amount:,} {unit})"


class Stage(Protocol):
    """What chaos needs of its world."""

    loop: SimulatedLoop
    hosts: dict[str, SimulatedHost]

    def note(self, kind: str, text: str) -> None:
        """Write something that happened into the trace."""
        ...

    def count_fault(self, name: str) -> None:
        """Count one injected fault."""
        ...

    def crash_image(self, during: str = "") -> CrashImage:
        """Return how the disk is left by a process that dies now."""
        ...

    def fail(self, invariant: str, text: str) -> None:
        """Say what is wrong and end the run."""
        ...


def draw_events(
    seed: int, config: RunConfig, hosts: list[str], *, over_s: float
) -> tuple[ChaosEvent, ...]:
    """Return what goes wrong within ``over_s`` seconds, by time."""
    rng = stream(seed, "chaos")
    over_ms = max(1, int(over_s * 1_000))
    events = [_draw_crash(rng, over_ms, hosts) for _ in range(config.crashes)]
    events += [
        ChaosEvent(
            rng.randrange(over_ms), "pause", rng.choice(hosts), rng.randrange(1, _pause_ms(rng))
        )
        for _ in range(config.pauses)
    ]
    events += [_draw_clock(rng, over_ms, hosts) for _ in range(config.clock_changes)]
    return tuple(sorted(events))


def _draw_crash(rng: random.Random, over_ms: int, hosts: list[str]) -> ChaosEvent:
    down_ms = rng.randrange(1, int(DOWN_S_MAX * 1_000))
    steps = rng.randrange(STEPS_AHEAD_MAX)
    return ChaosEvent(rng.randrange(over_ms), "crash", rng.choice(hosts), down_ms, steps)


def _pause_ms(rng: random.Random) -> int:
    return rng.choice((100, 3_000, int(PAUSE_S_MAX * 1_000)))


def _draw_clock(rng: random.Random, over_ms: int, hosts: list[str]) -> ChaosEvent:
    kinds: tuple[EventKind, ...] = ("wall-jump", "jump-ahead", "clock-rate")
    kind = rng.choice(kinds)
    match kind:
        case "wall-jump":
            amount = rng.randrange(-WALL_JUMP_MS_MAX, WALL_JUMP_MS_MAX)
        case "jump-ahead":
            amount = rng.randrange(1, JUMP_AHEAD_MS_MAX)
        case _:
            amount = rng.randrange(-RATE_PPM_BOUND, RATE_PPM_BOUND)
    return ChaosEvent(rng.randrange(over_ms), kind, rng.choice(hosts), amount)


class Chaos:
    """Lets a list of events happen. Call `begin` in the world, then `heal`."""

    def __init__(self, world: Stage, events: tuple[ChaosEvent, ...]) -> None:
        self._world = world
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []
        self._is_healed = False

    def begin(self) -> None:
        """Let the events happen from now on."""
        assert not self._tasks, "chaos begins once"
        loop = self._world.loop
        self._tasks = [
            loop.create_task(self._happen(event), name=f"chaos:{event.kind}")
            for event in self._events
        ]
        assert len(self._tasks) == len(self._events)

    async def heal(self) -> None:
        """Let nothing more happen; resume and start every machine; let clocks run at one rate."""
        self._is_healed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for host in self._world.hosts.values():
            host.resume()
            if host.clock.rate_ppm:
                host.set_clock(rate_ppm=0)
            await self.revive(host)
        assert all(host.is_serving for host in self._world.hosts.values()), "a machine stays down"

    async def _happen(self, event: ChaosEvent) -> None:
        await asyncio.sleep(event.at_ms / 1_000)
        host = self._world.hosts[event.host]
        self._world.note("chaos", event.describe())
        match event.kind:
            case "crash":
                await self._kill(host, event)
            case "pause":
                await self._hold(host, event)
            case "wall-jump":
                host.set_clock(wall_ns=event.amount * NANOSECONDS_PER_MS)
                self._world.count_fault("time.clock_jump")
            case "jump-ahead":
                host.set_clock(ahead_ns=event.amount * NANOSECONDS_PER_MS)
                self._world.count_fault("time.clock_jump")
            case "clock-rate":
                host.set_clock(rate_ppm=event.amount)
                self._world.count_fault("time.clock_skew")

    async def _kill(self, host: SimulatedHost, event: ChaosEvent) -> None:
        loop = self._world.loop
        died: asyncio.Future[None] = loop.create_future()

        def kill() -> None:
            if not self._is_healed:
                host.crash(self._world.crash_image())
                self._world.count_fault("crash.at_any_step")
            if not died.done():
                died.set_result(None)

        loop.at_step(loop.steps + 1 + event.delay_steps, kill)
        await died
        await asyncio.sleep(event.amount / 1_000)
        await self.revive(host)

    async def _hold(self, host: SimulatedHost, event: ChaosEvent) -> None:
        life = host.lives
        host.pause()
        self._world.count_fault("time.node_pause")
        try:
            await asyncio.sleep(event.amount / 1_000)
        finally:
            if host.lives == life:
                host.resume()

    async def revive(self, host: SimulatedHost) -> None:
        """Start the machine's program unless it runs; a death meanwhile is somebody else's."""
        deadline_ns = self._world.loop.now_ns + 600 * NANOSECONDS_PER_SECOND
        while not host.is_serving:
            assert self._world.loop.now_ns < deadline_ns, f"{host.name} does not start"
            try:
                if host.incarnation is None:
                    await host.start()
                else:
                    await asyncio.sleep(0.1)
            except ProgramDiedError:
                if not self._is_healed:
                    return
            except KelpieError:
                # It ended while it started; whoever manages services starts it again.
                if self._is_healed:
                    raise
                await asyncio.sleep(RESTART_S)
