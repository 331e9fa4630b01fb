"""What befalls machines: processes die, stop and go on, clocks jump, processors are busy.

Everything is a fault of the run's plan, asked for at its occasions, so that one list of injections
says all that went wrong. Beside them a watchdog starts what is down, as the init system of a real
machine would.

Invariants: after `Chaos.heal` nothing goes wrong any more and every machine serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Final, NoReturn, Protocol

from kelpie.core.errors import KelpieError
from kelpie.sim.clock import NANOSECONDS_PER_SECOND
from kelpie.sim.disk import take_crash_image
from kelpie.sim.faults.plan import FaultPlan
from kelpie.sim.host import CrashImage, SimulatedHost
from kelpie.sim.incarnation import Incarnation
from kelpie.sim.loop import SimulatedLoop, attempt

WEATHER_EVERY_S: Final = 0.5
REST_BEFORE_START_S: Final = 0.3
STARTS_MAX: Final = 200
RATE_PPM_BOUND: Final = 100_000  # a clock that gains or loses a tenth
STEP_FAULTS: Final = ("crash.at_any_step", "resource.cpu_starvation")


class Stage(Protocol):
    """What chaos needs of its world; one world has it all."""

    @property
    def loop(self) -> SimulatedLoop:
        """The loop that runs everything."""
        ...

    @property
    def hosts(self) -> dict[str, SimulatedHost]:
        """The machines by name."""
        ...

    def fail(self, invariant: str, text: str) -> None:
        """Say what is wrong and end the run."""
        ...

    def running_host(self) -> SimulatedHost | None:
        """Return the machine whose program runs now; None while the world does."""
        ...

    def asks(self, name: str) -> None:
        """Let the plan know for which machine it is asked next."""
        ...


class Chaos:
    """Lets the plan's faults befall the machines of one world. Call `begin`, then `heal`.

    Attributes:
        program_steps: How many steps programs, not the world, have taken or died before.
    """

    def __init__(self, world: Stage, plan: FaultPlan, *, crash_steps: Iterable[int] = ()) -> None:
        self.program_steps = 0
        self._world = world
        self._plan = plan
        self._crash_steps = frozenset(crash_steps)
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Let faults happen from now on."""
        assert not self._tasks, "chaos begins once"
        loop = self._world.loop
        is_watched = any(self._plan.may_fire(name) for name in STEP_FAULTS)
        loop.before_step = self._judge_step if is_watched else self._count_step
        for name, host in self._world.hosts.items():
            self._tasks.append(loop.create_task(self._befall(host), name=f"weather:{name}"))
            self._tasks.append(loop.create_task(self._watch(host), name=f"watchdog:{name}"))
        assert len(self._tasks) == 2 * len(self._world.hosts)

    def die(self, name: str) -> NoReturn:
        """Kill the program that runs now, at this very line, of the fault ``name``.

        Raises:
            SimulatedCrash: Always.
        """
        self._victim().die(self._image(name))

    async def heal(self) -> None:
        """Let nothing more go wrong; set the clocks right; resume and start every machine."""
        self._plan.heal()
        self._world.loop.before_step = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for host in self._world.hosts.values():
            host.resume()
            host.set_clock(rate_ppm=0, wall_ns=-host.clock.wall_error_ns)
            await self.revive(host)
        assert all(host.is_serving for host in self._world.hosts.values()), "a machine stays down"

    async def revive(self, host: SimulatedHost) -> None:
        """Start the machine's program until it serves; faults may get in the way for a while."""
        failure: KelpieError | None = None
        for _ in range(STARTS_MAX):
            if host.is_serving and not host.has_failed:
                return
            try:
                if host.has_failed:
                    host.crash()
                if host.incarnation is None:
                    await host.start()
                    continue
            except KelpieError as error:
                failure = error
                if self._plan.healed:
                    raise
            await asyncio.sleep(REST_BEFORE_START_S)
        raise AssertionError(f"{host.name} does not start: {failure}")

    # --- between steps --------------------------------------------------------------------------

    def _count_step(self, node: Incarnation) -> None:
        self.program_steps += 1
        if self.program_steps in self._crash_steps:
            self._world.hosts[node.name].crash()

    def _judge_step(self, node: Incarnation) -> None:
        self._count_step(node)
        host = self._world.hosts[node.name]
        self._world.asks(node.name)
        if self._plan.fires("resource.cpu_starvation"):
            seconds = self._plan.seconds("resource.cpu_starvation")
            self._world.loop.now_ns += int(seconds * NANOSECONDS_PER_SECOND)
        if host.incarnation is node and self._plan.fires("crash.at_any_step"):
            host.crash(self._image("crash.at_any_step"))
        self._world.asks("")

    def _victim(self) -> SimulatedHost:
        host = self._world.running_host()
        assert host is not None, "only a program dies"
        return host

    def _image(self, name: str) -> CrashImage:
        lost = self._plan.fires("crash.power_loss")
        return partial(take_crash_image, faults=self._plan, during=name, is_power_lost=lost)

    # --- over time ------------------------------------------------------------------------------

    async def _befall(self, host: SimulatedHost) -> None:
        while True:
            await asyncio.sleep(WEATHER_EVERY_S)
            self._world.asks(host.name)
            if self._plan.fires("time.clock_skew"):
                drawn = self._plan.below("time.clock_skew", 2 * RATE_PPM_BOUND + 1)
                host.set_clock(rate_ppm=drawn - RATE_PPM_BOUND)
            if self._plan.fires("time.clock_jump"):
                seconds = self._plan.seconds("time.clock_jump")
                host.set_clock(wall_ns=int(seconds * NANOSECONDS_PER_SECOND))
            pauses = self._plan.fires("time.node_pause")
            pause_s = self._plan.seconds("time.node_pause") if pauses else 0.0
            self._world.asks("")
            if pauses:
                await self._hold(host, pause_s)

    async def _hold(self, host: SimulatedHost, seconds: float) -> None:
        life = host.lives
        host.pause()
        try:
            await asyncio.sleep(seconds)
        finally:
            if host.lives == life:
                host.resume()

    async def _watch(self, host: SimulatedHost) -> None:
        while True:
            await asyncio.sleep(WEATHER_EVERY_S)
            if host.has_failed:
                host.crash()
            if host.incarnation is None:
                await asyncio.sleep(REST_BEFORE_START_S)
                failure = await attempt(self.revive(host))
                if failure is not None:
                    self._world.fail("every-machine-starts", f"{host.name}: {failure!r}")
