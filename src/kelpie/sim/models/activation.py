"""Activation, turns and answers: the shipped engine, driven through every order of events.

The transition function is a replay: a state is the list of what happened, and the next one is the
whole list once more with one event added, on a fresh engine over a fresh copy of the database. The
events are calls, loads that end, commits that reach the disk or do not, a kill, a pause, an
eviction, and a process that dies while its commits are still on their way. Nothing else is
modelled: the engine, its supervisor, its reads, take-over and commits are those that ship.

What callers were told is a history, and the law is that it is linearizable: at most one effective
activation, no answer before its version is durable, a key's turn once, a refused call without
effect.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple, cast

from kelpie.actors.engine import Engine
from kelpie.actors.ownership import Ownership
from kelpie.actors.supervisor import Supervisor
from kelpie.core.errors import CommitUnknownError, KelpieError, StoreError
from kelpie.sim.explore import Action, Law, Model
from kelpie.sim.history import History
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.models.held import (
    ACTOR,
    STRANGERS,
    HeldStore,
    RaiseTotal,
    ShowTotal,
    TotalMachine,
)
from kelpie.sim.models.still import FailureReports, StillClock, StillRng, run_at_once
from kelpie.sim.specifications import OnceSpecification
from kelpie.storage.protocol import Store
from kelpie.storage.records import Commit
from kelpie.storage.sqlite.migrations import migrate
from kelpie.storage.sqlite.reads import SqliteReads

TICKS_MAX: Final = 1_000
"""An event that keeps the loop busy for longer than this never comes to rest."""


MakeStore = Callable[[sqlite3.Connection, int], HeldStore]
"""Opens the store for the n-th process."""


# --- callers ------------------------------------------------------------------------------------


class SingleCall(NamedTuple):
    """Somebody who calls once: what, and under which key."""

    name: str
    kind: Literal["add", "get"]
    amount: int = 0
    key: str | None = None

    @property
    def argument(self) -> Any:
        """The argument as the specification takes it: an addition without a key has its own."""
        return None if self.kind == "get" else (self.key or self.name, self.amount)


ANN: Final = SingleCall("ann", "add", 1)
BEN: Final = SingleCall("ben", "add", 10, "k")
CAY: Final = SingleCall("cay", "add", 10, "k")
DAN: Final = SingleCall("dan", "get")

Event = tuple[str, str]
"""A kind of event, and whom it concerns or how it goes."""

TROUBLES: Final[frozenset[str]] = frozenset({"load fails", "disk fails", "kill", "pause", "evict"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedState:
    """What a list of events leads to.

    Attributes:
        events: The list.
        key: What tells such states apart.
        possible: What can happen next, with its text.
        problem: What is wrong, empty if nothing is.
        is_quiet: Whether every call was answered and nothing is under way.
    """

    events: tuple[Event, ...]
    key: Any
    possible: tuple[tuple[Event, str], ...]
    problem: str
    is_quiet: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Play:
    """What a model is made of."""

    loop: SimulatedLoop
    make_store: MakeStore
    callers: tuple[SingleCall, ...]
    troubles_max: int
    image: bytes

    def replay(self, events: tuple[Event, ...]) -> ReplayedState:
        """Run the events on a fresh engine and say where they lead."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.deserialize(self.image)
            return self.loop.run_until_complete(self._run(connection, events))

    async def _run(
        self, connection: sqlite3.Connection, events: tuple[Event, ...]
    ) -> ReplayedState:
        stage = _Stage(self, connection)
        try:
            for event in events:
                await stage.take(event)
            return stage.judge(events)
        finally:
            await stage.close()


class _Stage:
    """One replay under way."""

    def __init__(self, play: _Play, connection: sqlite3.Connection) -> None:
        self._play = play
        self._connection = connection
        self._history = History()
        self._reports = FailureReports()
        self._calls: dict[str, tuple[int, asyncio.Task[Any]]] = {}
        self._called: list[SingleCall] = []
        self._told: dict[str, str] = {}
        self._dead: deque[Commit] = deque()
        self._processes = 0
        self._at_ns = 0
        self._start()

    def _start(self) -> None:
        self._processes += 1
        self._store = self._play.make_store(self._connection, self._processes)
        clock = StillClock()
        self._supervisor = Supervisor(clock=clock, telemetry=self._reports)
        self._engine = Engine(
            store=cast("Store", self._store),
            ownership=Ownership(self._store.grants()),
            clock=clock,
            rng=StillRng(),
            telemetry=self._reports,
            supervisor=self._supervisor,
            resident_max=1,
        )
        self._engine.register(TotalMachine())

    async def close(self) -> None:
        """End everything that is left."""
        tasks = [task for _, task in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._supervisor.close()
        assert all(task.done() for task in tasks), "a replay leaves nothing behind"
        assert self._supervisor.task_count == 0

    async def take(self, event: Event) -> None:
        """Let one event happen, and wait until nothing moves."""
        kind, whom = event
        match kind:
            case "call":
                self._call(next(each for each in self._play.callers if each.name == whom))
            case "load":
                self._store.loads.popleft().set_result(None)
            case "load fails":
                self._store.loads.popleft().set_exception(StoreError("the disk cannot be read"))
            case "write":
                self._store.write(int(whom))
            case "disk fails":
                self._store.fail(is_kept=whom == "kept")
            case "write of the dead":
                self._store.put([self._dead.popleft()])
            case "restart":
                await self._restart()
            case _:
                await self._care(kind)
        await self._rest()

    async def _care(self, kind: str) -> None:
        match kind:
            case "kill":
                self._engine.kill(ACTOR)
            case "pause":
                self._engine.pause(ACTOR)
            case "resume":
                self._engine.resume(ACTOR)
            case "evict":
                for stranger in STRANGERS:
                    await self._engine.query(stranger, ShowTotal())
            case _:
                raise AssertionError(f"nothing is called {kind!r}")

    def _call(self, caller: SingleCall) -> None:
        token = self._history.call(
            caller.name, "total", caller.kind, caller.argument, at_ns=self._now()
        )
        self._called.append(caller)
        work = (
            self._engine.query(ACTOR, ShowTotal())
            if caller.kind == "get"
            else self._engine.call(
                ACTOR, RaiseTotal(caller.amount), principal=caller.name, key=caller.key
            )
        )
        self._calls[caller.name] = (token, self._play.loop.create_task(work))
        assert not self._calls[caller.name][1].done(), "a task begins later"

    async def _rest(self) -> None:
        """Let everything that can move come to rest, and write down what callers were told."""
        loop = self._play.loop
        for tick in range(TICKS_MAX):
            before = loop.steps
            await asyncio.sleep(0)
            if loop.steps == before + 1:
                break  # nothing but this ran
            assert tick + 1 < TICKS_MAX, "the engine does not come to rest"
        for name, (token, task) in list(self._calls.items()):
            if task.done():
                del self._calls[name]
                self._tell(name, token, task)
        self._engine.check_invariants()

    def _tell(self, name: str, token: int, task: asyncio.Task[Any]) -> None:
        error = task.exception()
        if error is None:
            self._history.returned(token, task.result(), at_ns=self._now())
            self._told[name] = str(task.result())
        elif isinstance(error, CommitUnknownError):
            self._history.lost(token)
            self._told[name] = "unknown"
        else:
            assert isinstance(error, KelpieError), f"{name} got {error!r}"
            self._history.refused(token)
            self._told[name] = "refused"

    def _now(self) -> int:
        self._at_ns += 1
        return self._at_ns

    async def _restart(self) -> None:
        """Let the process die: callers hear nothing, its commits may still arrive."""
        self._dead.extend(waiting.commit for waiting in self._store.waiting)
        calls, self._calls = self._calls, {}
        for token, task in calls.values():
            task.cancel()
            self._history.lost(token)
        for name in calls:
            self._told[name] = "unknown"
        await asyncio.gather(*(task for _, task in calls.values()), return_exceptions=True)
        await self._supervisor.close()
        self._start()

    # --- where it leads -------------------------------------------------------------------------

    def judge(self, events: tuple[Event, ...]) -> ReplayedState:
        """Return the state that the events led to."""
        report = check_linearizability(self._history.operations(), OnceSpecification())
        problem = "; ".join(self._reports.failures)
        if report.judgement is not Judgement.LINEARIZABLE:
            problem = str(report.counterexample)
        possible = tuple(self._possible(events))
        is_quiet = not self._calls and not self._store.loads and not self._store.waiting
        return ReplayedState(
            events=events,
            key=self._key(events),
            possible=possible,
            problem=problem,
            is_quiet=is_quiet,
        )

    def _key(self, events: tuple[Event, ...]) -> Any:
        """Return all that the engine shows, the store holds and callers know, in order."""
        seen = self._engine.inspect(ACTOR)
        stored = run_at_once(SqliteReads.load(self._store, ACTOR))
        operations = self._history.operations()
        known = tuple(
            (
                operation.client,
                operation.is_pending,
                operation.result,
                sum(
                    other.returned_ns < operation.called_ns
                    for other in operations
                    if other.returned_ns
                ),
            )
            for operation in operations
        )
        waiting = tuple(each.commit.expected_version for each in self._store.waiting)
        return (
            (seen.phase, seen.version, seen.durable_version, seen.mailbox, seen.paused),
            (stored.version, stored.state) if stored else None,
            tuple(caller.name for caller in self._called),
            tuple(sorted(self._told.items())),
            known,
            (len(self._store.loads), waiting, self._store.has_failed),
            tuple(commit.expected_version for commit in self._dead),
            sum(kind in TROUBLES for kind, _ in events),
            self._processes,
            self._engine.resident_count,
        )

    def _possible(self, events: tuple[Event, ...]) -> Iterable[tuple[Event, str]]:
        for caller in self._play.callers:
            if caller not in self._called:
                key = f" under the key {caller.key}" if caller.key else ""
                what = "reads" if caller.kind == "get" else f"adds {caller.amount}{key}"
                yield ("call", caller.name), f"{caller.name} {what}"
        store = self._store
        if store.loads:
            yield ("load", ""), "the actor is loaded"
        for count in sorted({1, len(store.waiting)} if store.waiting else ()):
            what = "a commit is" if count == 1 else f"{count} commits are"
            yield ("write", str(count)), f"{what} durable"
        if self._dead:
            yield ("write of the dead", ""), "a commit of the dead process reaches the disk"
        if self._processes == 1:
            yield ("restart", ""), "the process dies and another takes over"
        paused = self._engine.inspect(ACTOR).paused
        if paused:
            yield ("resume", ""), "the actor is resumed"
        if sum(kind in TROUBLES for kind, _ in events) < self._play.troubles_max:
            yield from self._possible_troubles(is_paused=paused)

    def _possible_troubles(self, *, is_paused: bool) -> Iterable[tuple[Event, str]]:
        store = self._store
        if store.loads:
            yield ("load fails", ""), "loading fails"
        if store.waiting:
            for kept in ("kept", "lost"):
                text = f"the disk fails under a commit, which is {kept}"
                yield ("disk fails", kept), text
        yield ("kill", ""), "somebody kills the actor"
        yield ("evict", ""), "other actors need the memory"
        if not is_paused:
            yield ("pause", ""), "somebody pauses the actor"


# --- the model ----------------------------------------------------------------------------------


def _find_problem(state: ReplayedState) -> str | None:
    return state.problem or None


def _actions(play: _Play, state: ReplayedState) -> Iterable[Action]:
    for event, text in state.possible:
        yield Action(event[0], text, partial(play.replay, (*state.events, event)))


def activation_model(
    loop: SimulatedLoop,
    *,
    callers: tuple[SingleCall, ...] = (ANN, BEN, CAY),
    troubles_max: int = 1,
    make_store: MakeStore = HeldStore,
) -> Model[ReplayedState]:
    """Return one actor's engine under ``callers``, one death, and some other trouble."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        image = connection.serialize()
    play = _Play(
        loop=loop,
        make_store=make_store,
        callers=callers,
        troubles_max=troubles_max,
        image=image,
    )
    return Model(
        name="one actor's engine",
        initial=[play.replay(())],
        actions=lambda state: _actions(play, state),
        canonical=lambda state: state.key,
        laws=[Law("callers see one actor", _find_problem)],
        is_goal=lambda state: state.is_quiet,
        is_over=lambda state: state.is_quiet,
        describe=lambda state: str(state.key),
    )
