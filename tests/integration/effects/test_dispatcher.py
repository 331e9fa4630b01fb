"""The dispatcher over a real store and runtime, with executors that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from kelpie.actors.commands import Message
from kelpie.actors.engine import Engine
from kelpie.actors.hub import EventHub
from kelpie.actors.ownership import Ownership
from kelpie.actors.sessions import EndedSessions
from kelpie.actors.supervisor import Supervisor
from kelpie.core.errors import DeniedError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects.dispatcher import Dispatcher
from kelpie.effects.executor import Order
from kelpie.effects.gate import Gated
from kelpie.effects.model import EffectRecord, Outcome, Preparation, Promise
from kelpie.effects.policy import Policy
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.host.clock import HostClock
from kelpie.host.rng import HostRng
from kelpie.ports.faults import faults_from
from kelpie.sim.telemetry import RecordedTelemetry
from kelpie.storage.sqlite.store import SqliteStore
from tests.integration.failing import Failing
from tests.unit.effects.asker import Ask, Asker, GiveUp
from tests.waiting import eventually_async

KIND = "model.generate"  # green, so that nobody has to say yes
ACTOR = ActorId(TENANT_DEFAULT, "asker", "one")


class BreakingExecutor:
    """Has a bug at one place; hangs where it is told to."""

    kind = KIND
    concurrency_max = 4

    def __init__(
        self, promise: Promise, breaks: Literal["prepare", "execute", "reconcile"]
    ) -> None:
        self._promise: Promise = promise
        self.breaks = breaks
        self.executing = asyncio.Event()

    def promise(self, args: dict[str, Any]) -> Promise:
        return self._promise

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        raise ZeroDivisionError("a bug")

    async def execute(self, order: Order) -> Outcome:
        self.executing.set()
        if order.record.args.get("speaks"):
            await order.stream("delta", b"hello")
        if order.record.args.get("refuses"):
            raise DeniedError("not here")
        if order.record.args.get("hangs"):
            await asyncio.Event().wait()
        if self.breaks == "execute" and not order.record.args.get("works"):
            raise ZeroDivisionError("a bug")
        return Outcome(status="done")

    async def reconcile(self, order: Order) -> Outcome | None:
        raise ZeroDivisionError("a bug")


class Node:
    """One process: what a test asks of it."""

    def __init__(self, runtime: Engine, dispatcher: Dispatcher, store: SqliteStore) -> None:
        self._runtime = runtime
        self._dispatcher = dispatcher
        self.store = store

    async def ask(self, ref: str, timeout_ms: int = 1_000, **args: Any) -> None:
        message = Ask(kind=KIND, ref=ref, args=args, timeout_ms=timeout_ms)
        await self._runtime.call(ACTOR, message, principal="test")

    async def say(self, message: Message) -> None:
        await self._runtime.call(ACTOR, message, principal="test")

    async def settle_restored(self) -> None:
        await self._dispatcher.settle_restored()

    async def expect_ends(self, *notes: str) -> None:
        """Return once the actor was told exactly these ends, in any order."""

        async def is_told() -> bool:
            state = await self._runtime.query(ACTOR, GiveUp(ref=""))
            return sorted(state) == sorted(notes)

        await eventually_async(is_told, within_s=5, what=f"the actor is told {notes}")
        self._dispatcher.check_invariants()
        assert self._dispatcher.running_count == 0


@asynccontextmanager
async def run_node(path: Path, executor: BreakingExecutor) -> AsyncIterator[Node]:
    clock, rng, telemetry = HostClock(), HostRng(), RecordedTelemetry()
    store = await SqliteStore.open(path / "kelpie.db", clock=clock, rng=rng)
    supervisor = Supervisor(clock=clock, telemetry=telemetry)
    ownership = Ownership(store.grants())
    runtime = Engine(
        store=store,
        ownership=ownership,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
        supervisor=supervisor,
    )
    kind = EffectKind(name=KIND, prepares=executor.breaks == "prepare", promise=executor.promise)
    runtime.register(Gated(Asker(), GateRules(policy=Policy(), kinds={KIND: kind})))
    dispatcher = Dispatcher(
        store=store,
        runtime=runtime,
        listen=runtime.listen,
        ownership=ownership,
        sessions=EndedSessions(clock=clock),
        hub=EventHub(),
        executors=[executor],
        clock=clock,
        telemetry=telemetry,
        supervisor=supervisor,
    )
    await dispatcher.start()
    try:
        yield Node(runtime, dispatcher, store)
    finally:
        await dispatcher.drain(0)
        await runtime.drain()
        await supervisor.close()
        await store.close()


@pytest.mark.requirement("ACTOR-FAILURE-CONTAINED")
async def test_a_bug_in_an_executor_ends_its_effect_and_nothing_else(tmp_path: Path) -> None:
    async with run_node(tmp_path, BreakingExecutor("repeatable", "execute")) as node:
        await node.ask("bad")
        await node.expect_ends("bad failed")
        await node.ask("good", works=True)
        await node.expect_ends("bad failed", "good done")


@pytest.mark.requirement("EFFECT-OUTCOME-TOLD")
@pytest.mark.parametrize("name", ["storage.write_fail", "storage.locked", "model.agent_loop_panic"])
async def test_an_outcome_that_could_not_be_stored_is_told_again(tmp_path: Path, name: str) -> None:
    source = Failing(name, is_armed=False)

    class Arming(BreakingExecutor):
        async def execute(self, order: Order) -> Outcome:
            source.is_armed = True
            return await super().execute(order)

    with faults_from(source):
        async with run_node(tmp_path, Arming("repeatable", "execute")) as node:
            await node.ask("good", works=True)
            await node.expect_ends("good done")
    assert source.happened == 1


@pytest.mark.requirement("EFFECT-ONCE-UNKNOWN")
async def test_a_once_effect_whose_executor_breaks_is_unknown(tmp_path: Path) -> None:
    async with run_node(tmp_path, BreakingExecutor("once", "execute")) as node:
        await node.ask("bad")
        await node.expect_ends("bad unknown")


async def test_a_bug_before_anything_was_sent_is_a_failure_whatever_the_promise(
    tmp_path: Path,
) -> None:
    async with run_node(tmp_path, BreakingExecutor("once", "prepare")) as node:
        await node.ask("bad")
        await node.expect_ends("bad failed")


async def test_a_bug_while_reading_an_outcome_back_does_not_leave_the_effect_open(
    tmp_path: Path,
) -> None:
    executor = BreakingExecutor("reconcilable", "reconcile")
    async with run_node(tmp_path, executor) as node:
        await node.ask("bad", hangs=True)
        await executor.executing.wait()
    async with run_node(tmp_path, BreakingExecutor("reconcilable", "reconcile")) as node:
        await node.expect_ends("bad failed")


async def test_a_typed_refusal_of_an_executor_is_a_failed_effect(tmp_path: Path) -> None:
    async with run_node(tmp_path, BreakingExecutor("repeatable", "reconcile")) as node:
        await node.ask("bad", refuses=True)
        await node.expect_ends("bad failed")


@pytest.mark.parametrize(
    ("promise", "end"), [("repeatable", "slow failed"), ("once", "slow unknown")]
)
async def test_an_attempt_that_takes_too_long_is_stopped(
    tmp_path: Path, promise: Promise, end: str
) -> None:
    async with run_node(tmp_path, BreakingExecutor(promise, "reconcile")) as node:
        await node.ask("slow", timeout_ms=30, hangs=True)
        await node.expect_ends(end)


async def test_giving_up_on_a_running_attempt_stops_it(tmp_path: Path) -> None:
    executor = BreakingExecutor("repeatable", "reconcile")
    async with run_node(tmp_path, executor) as node:
        await node.ask("slow", hangs=True)
        await executor.executing.wait()
        await node.say(GiveUp(ref="slow"))
        await node.expect_ends("slow cancelled")


async def test_an_interrupted_attempt_runs_again_and_its_stream_begins_with_a_restart(
    tmp_path: Path,
) -> None:
    executor = BreakingExecutor("repeatable", "reconcile")
    async with run_node(tmp_path, executor) as node:
        await node.ask("slow", speaks=True, hangs=True, timeout_ms=60_000)
        await executor.executing.wait()
        (row,) = await node.store.effects_open("", 10)

        async def first_spoke() -> bool:
            return bool(await node.store.stream(ACTOR, row.effect_id, 1, 0, 10))

        await eventually_async(first_spoke, within_s=5, what="the first attempt speaks")
    again = BreakingExecutor("repeatable", "reconcile")
    async with run_node(tmp_path, again) as node:
        await again.executing.wait()

        async def second_spoke() -> bool:
            return len(await node.store.stream(ACTOR, row.effect_id, 2, 0, 10)) == 2

        await eventually_async(second_spoke, within_s=5, what="the second attempt speaks")
        chunks = await node.store.stream(ACTOR, row.effect_id, 2, 0, 10)
        assert [chunk.kind for chunk in chunks] == ["restart", "delta"]


async def test_after_a_restore_a_once_effect_that_had_started_is_unknown(tmp_path: Path) -> None:
    executor = BreakingExecutor("once", "reconcile")
    async with run_node(tmp_path, executor) as node:
        await node.ask("sent", hangs=True, timeout_ms=60_000)
        await executor.executing.wait()
        await node.settle_restored()
        await node.say(GiveUp(ref="nobody"))
        (row,) = await node.store.effects_open("", 10)
        assert row.state == "unknown"
