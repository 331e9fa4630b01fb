"""One simulated world: its loop, machines, network, model, people, oracles and trace.

A world outlives the programs in it. Everything in it follows from its seed and its configuration.

Invariants: nothing is checked against the product's own memory; the first violation ends the run.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from kelpie.sim.chaos import Chaos, draw_events
from kelpie.sim.clock import NANOSECONDS_PER_MS, NANOSECONDS_PER_SECOND
from kelpie.sim.disk import take_crash_image
from kelpie.sim.faults.plan import FaultPlan, Injection
from kelpie.sim.host import CrashImage, SimulatedHost
from kelpie.sim.incarnation import Incarnation, current_incarnation
from kelpie.sim.loop import SimulatedCrash, SimulatedLoop
from kelpie.sim.network import SimulatedNetwork
from kelpie.sim.rng import stream
from kelpie.sim.sandbox import Program
from kelpie.sim.swarm import RunConfig
from kelpie.sim.trace import Trace
from kelpie.sim.view import CommitSeen, Invariant, Predicate, View, Violation
from kelpie.storage.records import Commit, CommitReceipt

LOOK_INTERVAL_S: Final = 0.5
RESTART_S: Final = (0.1, 4.0)  # how soon a program that ended is started again

Condition = Callable[[], bool | Awaitable[bool]]


class SimulatedWorld:
    """Where a scenario happens.

    Attributes:
        directory: Holds a directory for each machine.
        hosts: The machines by name.
        faults: What may go wrong at fault points; asleep until `unleash`.
        network: How programs reach models and each other.
        programs: What can be run in sandboxes, by name.
        commands_started: What was run in sandboxes, oldest first.
        view: What the world saw become durable.
        invariants: What is checked at every commit; scenarios add theirs.
        violation: What went wrong first; None while all is well.
        injected: How often each fault happened.
        reached: How often each `sometimes` held; 0 for one that was asked and never did.
    """

    def __init__(
        self, *, seed: int, config: RunConfig, directory: Path, loop: SimulatedLoop, trace: Trace
    ) -> None:
        self.seed = seed
        self.config = config
        self.directory = directory
        self.loop = loop
        self.hosts: dict[str, SimulatedHost] = {}
        self.faults = FaultPlan(
            config.rules,
            seed=seed,
            now_ns=lambda: loop.now_ns,
            node=_asking_node,
            die=self._die,
            tell=self._injected,
            is_asleep=True,
        )
        self.network = SimulatedNetwork(faults=self.faults)
        self.programs: dict[str, Program] = {}
        self.commands_started: list[str] = []
        self.view = View()
        self.invariants: list[Invariant] = []
        self.violation: Violation | None = None
        self.injected: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.chaos: Chaos | None = None
        self._trace = trace
        self._latency = stream(seed, "latency")
        self._jobs = stream(seed, "jobs")
        self._background: list[asyncio.Task[None]] = []
        starves = "resource.cpu_starvation" in config.faults
        loop.trace = self._starving_step if starves else trace.step
        loop.job_delay_ns = self._job_delay_ns
        loop.set_exception_handler(self._stray)

    # --- making it ------------------------------------------------------------------------------

    def stream(self, purpose: str) -> random.Random:
        """Return the seed's random numbers for one purpose."""
        return stream(self.seed, purpose)

    def add_host(self, name: str = "n1", **options: Any) -> SimulatedHost:
        """Return a new machine with an empty disk; ``options`` as `SimulatedHost` takes them."""
        assert name not in self.hosts, f"two machines are called {name}"
        directory = self.directory / name
        directory.mkdir()
        host = self.hosts[name] = SimulatedHost(self, name, directory, **options)
        assert self.hosts[name].incarnation is None
        return host

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as part of the world: a client, a person."""
        task: asyncio.Task[None] = self.loop.create_task(work, name=name)
        return task

    def latency_s(self) -> float:
        """Return how long the next message is on its way."""
        bound_ms = self.config.latency_ms_max
        return self._latency.random() * bound_ms / 1_000 if bound_ms else 0.0

    def _job_delay_ns(self) -> int:
        bound_ms = self.config.job_delay_ms_max
        delay_ns = int(self._jobs.random() * bound_ms * NANOSECONDS_PER_MS) if bound_ms else 0
        if self.faults.fires("storage.latency"):
            delay_ns += int(self.faults.seconds("storage.latency") * NANOSECONDS_PER_SECOND)
        return delay_ns

    def _starving_step(self, node: Incarnation | None, now_ns: int, callback: Any) -> None:
        """Trace a step; before that, a machine may get no processor for a while."""
        if node is not None and self.faults.fires("resource.cpu_starvation"):
            seconds = self.faults.seconds("resource.cpu_starvation")
            self.loop.now_ns += int(seconds * NANOSECONDS_PER_SECOND)
        self._trace.step(node, now_ns, callback)

    # --- what goes wrong ------------------------------------------------------------------------

    def unleash(self, *, over_s: float) -> None:
        """Let what the seed drew go wrong within the next ``over_s`` seconds."""
        assert self.chaos is None, "chaos begins once"
        events = draw_events(self.seed, self.config, sorted(self.hosts), over_s=over_s)
        self.chaos = Chaos(self, events)
        self.faults.wake()
        self.chaos.begin()
        self._background = [
            self.spawn("weather", self.network.links.weather()),
            self.spawn("service-manager", self._manage(self.chaos)),
        ]

    async def heal(self) -> None:
        """Let nothing go wrong any more, and return when every machine runs."""
        if self.chaos is None:
            self.chaos = Chaos(self, ())
        self.faults.heal()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.network.links.heal()
        for host in self.hosts.values():
            if host.has_failed:
                host.crash()
        await self.chaos.heal()

    async def _manage(self, chaos: Chaos) -> None:
        """Start what has ended again, as whoever manages services does; stop what cannot go on."""
        rng = self.stream("service-manager")
        while True:
            await asyncio.sleep(rng.uniform(*RESTART_S))
            for host in list(self.hosts.values()):
                if host.has_failed:
                    host.crash()
                if host.lives and host.incarnation is None:
                    await chaos.revive(host)

    def crash_image(self, during: str = "") -> CrashImage:
        """Return how the disk is left by a process that dies now, perhaps with its machine."""
        is_power_lost = self.faults.fires("crash.power_loss")
        return partial(
            take_crash_image, faults=self.faults, during=during, is_power_lost=is_power_lost
        )

    def _die(self, name: str) -> None:
        node = current_incarnation()
        assert node is not None, "only a program can die"
        self.hosts[node.name].die(self.crash_image(name))

    def _injected(self, injection: Injection) -> None:
        self.count_fault(injection.name)
        self.note("fault", f"{injection.name} {injection.node} {injection.occasion}")

    def count_fault(self, name: str) -> None:
        """Count one injected fault."""
        self.injected[name] += 1

    def note(self, kind: str, text: str) -> None:
        """Write something that happened into the trace."""
        self._trace.note(kind, text)

    # --- oracles --------------------------------------------------------------------------------

    def always(self, name: str, test: Callable[[View], str | None]) -> None:
        """Check ``test`` at every commit and at the end; it returns what is wrong, or None."""
        assert all(each.name != name for each in self.invariants), f"two are called {name}"
        self.invariants.append(Predicate(name, test))

    def sometimes(self, name: str, condition: bool = True) -> None:  # noqa: FBT001, FBT002
        """Count that ``condition`` held; a soak that never reaches it fails."""
        self.reached[name] += bool(condition)

    async def eventually(self, name: str, condition: Condition, *, within_s: float) -> None:
        """Return once ``condition`` holds; a run in which it does not within the bound fails."""
        assert within_s > 0, "liveness has a bound"
        for _ in range(int(within_s / LOOK_INTERVAL_S) + 1):
            answer = condition()
            if await answer if isinstance(answer, Awaitable) else answer:
                return
            await asyncio.sleep(LOOK_INTERVAL_S)
        self.fail(f"eventually {name}", f"it did not happen within {within_s:g} s")
        await asyncio.Event().wait()

    def landed(
        self, host: str, session: str, commit: Commit, receipt: CommitReceipt | None
    ) -> None:
        """Take a durable commit into account and check every invariant."""
        seen = CommitSeen(host, session, commit, receipt, self.loop.now_ns)
        self._trace.note("commit", _describe(host, commit, receipt))
        self.view.note_commit(seen)
        self.check()

    def check(self) -> None:
        """Check every invariant now."""
        for invariant in self.invariants:
            problem = invariant.check(self.view)
            if problem is not None:
                self.fail(invariant.name, problem)
                return

    def fail(self, invariant: str, text: str) -> None:
        """Say what is wrong and end the run; what follows the first violation is not looked at."""
        if self.violation is None:
            at_ns = self.loop.now_ns
            self.violation = Violation(
                invariant=invariant, text=text, step=self.loop.steps, at_ns=at_ns
            )
            self.loop.stop()
        assert self.violation is not None

    def _stray(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Whatever a callback lets go is a bug of the product."""
        error = context.get("exception")
        if not isinstance(error, SimulatedCrash):
            self.fail("no-stray-exception", f"{context['message']}: {error!r}")

    def close(self) -> None:
        """Throw everything away; the files stay."""
        for host in self.hosts.values():
            host.crash()
        self.loop.abandon()


def _asking_node() -> str | None:
    node = current_incarnation()
    return None if node is None else node.name


def _describe(host: str, commit: Commit, receipt: CommitReceipt | None) -> bytes:
    text = f"{host} {receipt}".encode()
    return text + msgspec.msgpack.encode(commit, enc_hook=str, order="deterministic")
