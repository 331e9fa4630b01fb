"""One simulated world: its loop, machines, network, model, people, oracles and trace.

A world outlives the programs in it. Everything in it follows from its seed and its configuration.

Invariants: nothing is checked against the product's own memory; the first violation ends the run.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from kelpie.core.ids import ActorId
from kelpie.sim.book import Book, StoreSeen
from kelpie.sim.chaos import Chaos
from kelpie.sim.clock import NANOSECONDS_PER_SECOND
from kelpie.sim.faults.plan import FaultPlan, Injection
from kelpie.sim.frames import SimulatedWires
from kelpie.sim.host import SimulatedHost
from kelpie.sim.incarnation import INCARNATION
from kelpie.sim.invariants import every_invariant
from kelpie.sim.loop import SimulatedCrash, SimulatedLoop
from kelpie.sim.network import Links, SimulatedNetwork
from kelpie.sim.rng import stream
from kelpie.sim.sandbox import Program
from kelpie.sim.swarm import RunConfig
from kelpie.sim.trace import Trace
from kelpie.sim.view import (
    AnswerSeen,
    CommitSeen,
    Invariant,
    LeaseSeen,
    Predicate,
    ReadSeen,
    View,
    Violation,
)
from kelpie.storage.records import Commit, CommitReceipt, StoredActor

LOOK_INTERVAL_S: Final = 0.5

Condition = Callable[[], bool | Awaitable[bool]]


class SimulatedWorld:
    """Where a scenario happens.

    Attributes:
        directory: Holds a directory for each machine.
        hosts: The machines by name.
        network: How programs reach models and each other.
        programs: What can be run in sandboxes, by name.
        commands_started: What was run in sandboxes, oldest first.
        view: What the world saw become durable.
        invariants: What is checked at every commit; scenarios add theirs.
        violation: What went wrong first; None while all is well.
        plan: Which faults happen; they begin with `unleash`.
        reached: How often each `sometimes` held; 0 for one that was asked and never did.
    """

    def __init__(
        self,
        *,
        seed: int,
        config: RunConfig,
        directory: Path,
        loop: SimulatedLoop,
        trace: Trace,
        script: Iterable[Injection] | None = None,
    ) -> None:
        self.seed = seed
        self.config = config
        self.directory = directory
        self.loop = loop
        self.hosts: dict[str, SimulatedHost] = {}
        self.plan = FaultPlan(
            config.rules,
            seed=seed,
            now_ns=lambda: loop.now_ns,
            node=self._asker,
            die=self._die,
            script=script,
        )
        self.links = Links(self.plan)
        self.network = SimulatedNetwork(self.links, self.plan)
        self.wires = SimulatedWires(self.links, self.plan)
        self.programs: dict[str, Program] = {}
        self.commands_started: list[str] = []
        self.view = View()
        self.invariants: list[Invariant] = every_invariant()
        self.violation: Violation | None = None
        self.reached: Counter[str] = Counter()
        self.chaos = Chaos(self, self.plan, crash_steps=config.crash_steps)
        self._trace = trace
        self._asks = ""
        self._weather: asyncio.Task[None] | None = None
        loop.trace = trace.step
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
        self.links.add_host(name)
        assert self.hosts[name].incarnation is None
        return host

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as part of the world: a client, a person."""
        task: asyncio.Task[None] = self.loop.create_task(work, name=name)
        return task

    def _job_delay_ns(self) -> int:
        if not self.plan.fires("storage.latency"):
            return 0
        return int(self.plan.seconds("storage.latency") * NANOSECONDS_PER_SECOND)

    # --- what goes wrong ------------------------------------------------------------------------

    async def unleash(self) -> None:
        """Start every machine, and let what the seed drew go wrong with them from then on.

        Those that share a database are started by their watchdogs: it may die before they serve.
        """
        assert self._weather is None, "chaos begins once"
        for host in self.hosts.values():
            if host.database is None:
                await self.chaos.revive(host)
        self.chaos.begin()
        self._weather = self.spawn("weather", self.links.weather())

    async def heal(self) -> None:
        """Let nothing go wrong any more, and return when every machine serves."""
        self.plan.heal()
        if self._weather is not None:
            self._weather.cancel()
        self.links.heal()
        await self.chaos.heal()
        self.plan.check_invariants()
        self.links.check_invariants()

    def running_host(self) -> SimulatedHost | None:
        """Return the machine whose program runs now; None while the world does."""
        incarnation = INCARNATION.get()
        return None if incarnation is None else self.hosts[incarnation.name]

    def _die(self, name: str) -> None:
        self.chaos.die(name)

    def asks(self, name: str) -> None:
        """Let the plan know for which machine the world asks next."""
        self._asks = name
        assert not name or name in self.hosts

    def _asker(self) -> str:
        incarnation = INCARNATION.get()
        return self._asks if incarnation is None else incarnation.name

    def note(self, kind: str, text: str) -> None:
        """Write something that happened into the trace."""
        self._trace.note(kind, text)

    # --- oracles --------------------------------------------------------------------------------

    def always(self, name: str, test: Callable[[View], str | None]) -> None:
        """Check ``test`` at every commit and at the end; it returns what is wrong, or None."""
        assert all(each.name != name for each in self.invariants), f"two are called {name}"
        self.invariants.append(Predicate(name, test))
        assert self.invariants[-1].name == name

    def sometimes(self, name: str, condition: bool = True) -> None:  # noqa: FBT001, FBT002
        """Count that ``condition`` held; a soak that never reaches it fails."""
        assert name, "a marker has a name"
        self.reached[name] += bool(condition)
        assert self.reached[name] >= 0

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
        self.view.book_of(host).note(commit, receipt)
        self.view.last = None

    def commits_seen(self) -> int:
        """Return how many durable commits there were."""
        return self.view.commits

    def loaded(self, host: str, actor: ActorId, seen: int, stored: StoredActor | None) -> None:
        """Check every invariant over what a store answered."""
        assert host in self.hosts, "a machine of this world"
        assert seen <= self.view.commits, "commits are only added"
        self.view.read = ReadSeen(host, actor, seen, stored)
        self.check()
        self.view.read = None

    def leased(self, seen: LeaseSeen) -> None:
        """Check every invariant over what became of a session or of shards."""
        assert self.view.lease is None, "one thing is judged at a time"
        self._trace.note("lease", repr(tuple(seen)))
        self.view.lease = seen
        self.check()
        self.view.lease = None

    def looked(self, seen: StoreSeen) -> None:
        """Check every invariant over what is in a store's file."""
        assert self.view.look is None, "one look at a time"
        book = self.view.book_of(seen.host)
        if not book.commits and seen.rows.actors and seen.is_held:
            book.begin_with(seen)
        book.adopt_numbers(seen.rows.outbox)
        book.adopt_burials(seen.rows.reminders)
        self.view.look = seen
        self.check()
        self.view.look = None

    def released(self, host: str) -> None:
        """Take into account that a restored store may drive its work from now on."""
        assert host in self.hosts, "a machine of this world"
        self.view.released.add(host)
        assert not self.view.is_over, "a run that is over changes nothing"

    def book_of(self, host: str) -> Book:
        """Return what a machine's store should hold."""
        return self.view.book_of(host)

    def answered(self, seen: AnswerSeen) -> None:
        """Check every invariant over what a client was told."""
        assert seen.asked_ns <= seen.answered_ns, "an answer follows its question"
        assert seen.host in self.hosts, "a machine of this world"
        self.view.answers.append(seen)
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
        assert self.violation.at_ns <= self.loop.now_ns

    def _stray(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Whatever a callback lets go is a bug of the product.

        What a dead program never looked at says nothing.
        """
        error = context.get("exception")
        if "handle" in context and not isinstance(error, SimulatedCrash):
            self.fail("no-stray-exception", f"{context['message']}: {error!r}")

    def close(self) -> None:
        """Throw everything away; the files stay."""
        for host in self.hosts.values():
            host.crash()
        self.loop.abandon()


def _describe(host: str, commit: Commit, receipt: CommitReceipt | None) -> bytes:
    text = f"{host} {receipt}".encode()
    return text + msgspec.msgpack.encode(commit, enc_hook=str, order="deterministic")
