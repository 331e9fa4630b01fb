"""Shards come and go under running actors, on a simulated loop over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from kelpie import Actor, State, command, query
from kelpie.actors.api.hosting import ActorMachine
from kelpie.core.errors import FencedError, NotOwnerError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import HAND_OVER_TURN_MS_MAX
from kelpie.effects.executor import Order
from kelpie.effects.gate import Gated
from kelpie.effects.model import EffectRecord, Outcome, Preparation, Promise
from kelpie.effects.policy import Policy
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.sim.loop import SimulatedLoop
from kelpie.storage.records import StoredPause
from tests.integration.actors.counter import (
    Add,
    Break,
    CounterMachine,
    CounterState,
    Later,
    PassOn,
    Show,
    counter,
)
from tests.integration.actors.nodes import ALL_SHARDS, SharedNode, nodes
from tests.integration.actors.simulated import simulate
from tests.unit.effects.asker import Ask, Asker, GiveUp

pytestmark = pytest.mark.requirement("ACTOR-ONE-EFFECTIVE")

A = counter("a")
B = counter("b")
ASKER = ActorId(TENANT_DEFAULT, "asker", "one")
KIND = "model.generate"  # green, so that nobody has to say yes


class Steps(State):
    total: int = 0


class Walker(Actor[Steps]):
    """Waits in its handler; one of its handlers does not listen when it is stopped."""

    @command
    async def walk(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.state.total += 1
        return self.state.total

    @command
    async def insist(self, seconds: float) -> int:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(seconds)
        self.state.total += 100
        return self.state.total

    @command
    def peek(self) -> int:
        return self.state.total

    @query
    async def ponder(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return self.state.total

    @query
    def total(self) -> int:
        return self.state.total


WALKER = ActorId(TENANT_DEFAULT, Walker.type_name(), "w")


def machines() -> Sequence[Any]:
    return (CounterMachine(), ActorMachine(Walker))


def walker_message(name: str, *args: Any) -> Any:
    return getattr(Walker, name).pack(args, {})


async def total(node: SharedNode, actor: ActorId = A) -> int:
    state = await node.engine.query(actor, Show())
    assert isinstance(state, CounterState)
    return state.total


async def ends(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_nothing_of_a_shard_that_is_not_owned_is_loaded_and_the_refusal_names_its_owner(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", machines=machines) as (one,):
            one.ownership.point({A.shard: "two:1"})
            asked = [
                one.call(A, Add(1)),
                one.call(A, Add(1), key="k"),
                one.engine.query(A, Show()),
                one.engine.deliver(A, b"\x80", principal="test", message_id=1),
                one.calls.submit(A, Add(1), principal="test"),
                one.pauses.pause(A, principal="test"),
            ]
            refusals = await asyncio.gather(*asked, return_exceptions=True)
            for refusal in (refusals[0], refusals[1], refusals[2], refusals[4], refusals[5]):
                assert isinstance(refusal, NotOwnerError)
                assert refusal.fields == {"shard": A.shard, "owner": "two:1"}
            assert one.engine.resident_count == one.store.replies_read == 0
            assert not one.engine.is_paused(A)
            await one.gain(A.shard)
            assert await one.call(A, Add(2)) == 2

    simulate(run, loop=SimulatedLoop())


def test_past_the_lease_no_answer_leaves_that_the_store_did_not_prove(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", machines=machines) as (one,):
            await one.gain(*ALL_SHARDS)
            await one.call(A, Add(1))
            one.ownership.until_ns = one.clock.boot_ns() + 1_000_000_000
            assert await total(one) == 1
            await asyncio.sleep(0.6)
            slow = asyncio.ensure_future(one.engine.query(WALKER, walker_message("ponder", 0.6)))
            await asyncio.sleep(0.5)
            with pytest.raises(NotOwnerError):
                await total(one)
            with pytest.raises(NotOwnerError):
                await one.call(WALKER, walker_message("peek"))
            with pytest.raises(NotOwnerError):
                await one.call(A, Break())  # what it refuses was read of its state too
            assert await one.call(A, Add(1)) == 2, "a commit proves its own answer"
            assert isinstance(
                (await asyncio.gather(slow, return_exceptions=True))[0], NotOwnerError
            )
            one.ownership.until_ns = one.clock.boot_ns() + 1_000_000_000
            assert await total(one) == 2

    simulate(run, loop=SimulatedLoop())


def test_an_answer_that_was_read_within_the_lease_may_wait_for_its_commit(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", machines=machines) as (one,):
            await one.gain(A.shard)
            one.store.gate.clear()
            call = asyncio.ensure_future(one.call(A, Add(1)))
            await asyncio.sleep(0)
            early = asyncio.ensure_future(one.engine.query(A, Show()))
            await asyncio.sleep(0.1)
            one.ownership.until_ns = one.clock.boot_ns()
            late = asyncio.ensure_future(one.engine.query(A, Show()))
            await asyncio.sleep(0.1)
            one.store.gate.set()
            assert await call == 1
            assert (await early).total == 1
            assert isinstance((await ends(late))[0], NotOwnerError)

    simulate(run, loop=SimulatedLoop())


def test_a_shard_lost_while_a_commit_is_in_flight_answers_as_the_store_decided(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(A.shard)
            assert await one.call(A, Add(1)) == 1
            one.store.gate.clear()
            late = asyncio.ensure_future(one.call(A, Add(10)))
            waiting = asyncio.ensure_future(one.engine.query(A, Show()))
            await asyncio.sleep(0.01)
            one.lose(A.shard)
            assert one.engine.resident_count == 0
            await asyncio.sleep(0)
            assert isinstance(waiting.exception(), NotOwnerError)
            assert not late.done(), "only the store knows"
            await one.free(A.shard)
            await two.gain(A.shard)
            one.store.gate.set()
            (refused,) = await ends(late)
            assert isinstance(refused, NotOwnerError)
            assert isinstance(refused.__cause__, FencedError)
            assert await total(two) == 1
            assert await two.call(A, Add(5)) == 6

    simulate(run, loop=SimulatedLoop())


def test_a_commit_that_was_durable_before_its_shard_was_lost_is_acknowledged(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(A.shard)
            late = asyncio.ensure_future(one.call(A, Add(10)))
            await asyncio.sleep(0)
            one.lose(A.shard)
            assert await late == 10
            await one.free(A.shard)
            await two.gain(A.shard)
            assert await total(two) == 10

    simulate(run, loop=SimulatedLoop())


def test_a_refused_epoch_costs_the_shard_and_no_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            assert A.shard != B.shard
            await one.gain(A.shard, B.shard)
            await one.call(A, Add(1))
            await one.call(B, Add(1))
            await one.free(A.shard)  # in the store alone, as when others ended its session
            await two.gain(A.shard)
            assert await two.call(A, Add(1)) == 2
            with pytest.raises(NotOwnerError):
                await one.call(A, Add(100))
            assert not one.ownership.owns(A.shard)
            assert one.ownership.owns(B.shard)
            assert await one.call(B, Add(1)) == 2
            assert await total(two) == 2

    simulate(run, loop=SimulatedLoop())


def test_of_a_handler_whose_shard_is_lost_nothing_leaves(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(*ALL_SHARDS)
            running = asyncio.ensure_future(one.call(WALKER, walker_message("insist", 5.0)))
            queued = asyncio.ensure_future(one.call(WALKER, walker_message("walk", 1.0)))
            asked = asyncio.ensure_future(one.engine.query(WALKER, walker_message("ponder", 8.0)))
            await asyncio.sleep(1)
            one.lose(*ALL_SHARDS)
            await asyncio.sleep(0)
            assert running.done(), "its caller does not wait for a handler that will not stop"
            assert all(isinstance(end, NotOwnerError) for end in await ends(running, queued))
            await one.free(*ALL_SHARDS)
            await two.gain(*ALL_SHARDS)
            assert await two.call(WALKER, walker_message("walk", 1.0)) == 1
            await asyncio.sleep(10)
            assert isinstance((await ends(asked))[0], NotOwnerError)
            assert one.store.written == []
            assert await two.engine.query(WALKER, walker_message("total")) == 1

    simulate(run, loop=SimulatedLoop())


def test_a_hand_over_lets_the_running_turn_end_and_sends_the_others_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(*ALL_SHARDS)
            await one.call(A, Add(1))
            running = asyncio.ensure_future(one.call(WALKER, walker_message("walk", 1.0)))
            await asyncio.sleep(0)
            queued = asyncio.ensure_future(one.call(WALKER, walker_message("walk", 1.0)))
            one.store.gate.clear()
            written = asyncio.ensure_future(one.call(A, Add(1)))
            await asyncio.sleep(0.01)
            giving = asyncio.ensure_future(one.give(*ALL_SHARDS))
            await asyncio.sleep(0)
            assert isinstance((await ends(queued))[0], NotOwnerError)
            with pytest.raises(NotOwnerError):
                await one.call(B, Add(1))
            with pytest.raises(NotOwnerError):
                await total(one)
            await asyncio.sleep(1.1)
            assert not giving.done(), "commits are on their way"
            assert one.ownership.owns(A.shard)
            one.store.gate.set()
            assert await running == 1
            assert await written == 2
            await giving
            assert one.engine.resident_count == 0
            await two.gain(*ALL_SHARDS)
            assert await two.call(A, Add(1)) == 3
            assert await two.call(WALKER, walker_message("walk", 0.1)) == 2

    simulate(run, loop=SimulatedLoop())


def test_a_handler_that_does_not_end_holds_a_hand_over_up_for_a_bounded_time(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(*ALL_SHARDS)
            running = asyncio.ensure_future(one.call(WALKER, walker_message("insist", 15.0)))
            await asyncio.sleep(0)
            began_ns = one.clock.boot_ns()
            await one.give(*ALL_SHARDS)
            assert (one.clock.boot_ns() - began_ns) // 1_000_000 == HAND_OVER_TURN_MS_MAX
            assert isinstance((await ends(running))[0], NotOwnerError)
            await two.gain(*ALL_SHARDS)
            await asyncio.sleep(40)
            assert await two.engine.query(WALKER, walker_message("total")) == 0
            assert one.store.written == []

    simulate(run, loop=SimulatedLoop())


@pytest.mark.requirement("ACTOR-MESSAGE-ONCE", "ACTOR-FIFO")
@pytest.mark.parametrize("is_ordered", [False, True])
def test_messages_that_wait_for_a_shard_have_their_turns_once_and_in_order(
    tmp_path: Path, *, is_ordered: bool
) -> None:
    async def run() -> None:
        opened = nodes(tmp_path, "one", "two", machines=machines, is_ordered=is_ordered)
        async with opened as (one, two):
            await one.gain(A.shard, counter("c").shard)
            await two.gain(B.shard)
            labels = [f"{number}" for number in range(40)]
            for label in labels[:20]:
                await one.call(A, PassOn("b", (label,)))
            await asyncio.sleep(3)
            assert (await two.engine.query(B, Show())).seen == tuple(labels[:20]), "found by a look"
            two.store.gate.clear()
            await one.call(A, PassOn("b", tuple(labels[20:30])))
            await one.call(counter("c"), PassOn("a", ("later",)))
            await asyncio.sleep(2)
            assert (await one.engine.query(A, Show())).seen == ("later",)
            two.lose(B.shard)  # with deliveries on their way
            await two.free(B.shard)
            await one.gain(B.shard)
            two.store.gate.set()
            await one.call(A, PassOn("b", tuple(labels[30:])))
            await asyncio.sleep(5)
            assert (await one.engine.query(B, Show())).seen == tuple(labels)
            assert await one.store.outbox(0, 10) == []
            assert two.outbox.backlog == 0

    simulate(run, loop=SimulatedLoop())


@pytest.mark.requirement("ACTOR-FIFO")
def test_a_message_whose_transaction_was_slow_is_not_overtaken_by_its_senders_next(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        opened = nodes(tmp_path, "one", "two", machines=machines, is_ordered=True)
        async with opened as (one, two):
            await one.gain(A.shard, counter("c").shard)
            await two.gain(B.shard)
            await one.call(A, PassOn("b", ("first",)))
            (slow,) = await one.store.everything()
            two.store.hidden.add(slow.message_id)
            await one.call(counter("c"), PassOn("b", ("other",)))
            await asyncio.sleep(3)
            assert (await two.engine.query(B, Show())).seen == ("other",)
            await one.call(A, PassOn("b", ("second",)))
            two.store.hidden.clear()
            await asyncio.sleep(3)
            assert (await two.engine.query(B, Show())).seen == ("other", "first", "second")

    simulate(run, loop=SimulatedLoop())


def test_a_reminder_that_was_on_its_way_when_its_shard_was_lost_is_the_next_owners(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(A.shard)
            await one.call(A, Later(one.clock.now_ms() + 1_000, "soon"))
            one.store.gate.clear()
            await asyncio.sleep(1.5)
            one.lose(A.shard)
            await one.free(A.shard)
            one.store.gate.set()
            await asyncio.sleep(1)
            await two.gain(A.shard)
            await asyncio.sleep(5)
            assert (await two.engine.query(A, Show())).seen == ("soon",)
            logged = [event for _, event, _ in one.telemetry.logs]
            assert "reminder.failed" not in logged, "it is not one's own any more"

    simulate(run, loop=SimulatedLoop())


def test_reminders_of_a_gained_shard_fire_and_those_of_a_lost_one_do_not(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(A.shard)
            now_ms = one.clock.now_ms()
            for delay_ms in (1_000, 2_000, 60_000):
                await one.call(A, Later(now_ms + delay_ms, f"{delay_ms}"))
            await one.give(A.shard)
            await asyncio.sleep(10)
            await two.gain(A.shard)
            await asyncio.sleep(1)
            assert (await two.engine.query(A, Show())).seen == ("1000", "2000")
            await two.give(A.shard)
            await one.gain(A.shard)
            await asyncio.sleep(60)
            assert (await one.engine.query(A, Show())).seen == ("1000", "2000", "60000")

    simulate(run, loop=SimulatedLoop())


@pytest.mark.requirement("ACTOR-PAUSE-SURVIVES")
def test_a_pause_holds_at_the_next_owner_before_its_first_turn(tmp_path: Path) -> None:
    async def run() -> None:
        async with nodes(tmp_path, "one", "two", machines=machines) as (one, two):
            await one.gain(A.shard, B.shard)
            await one.call(A, Add(1))
            await one.pauses.pause(A, principal="somebody")
            await one.give(A.shard, B.shard)
            assert not one.engine.is_paused(A), "it is the next owner's to know"
            two.store.pause_gate.clear()
            await two.gain(A.shard, B.shard)
            call = asyncio.ensure_future(two.call(A, Add(1)))
            other = asyncio.ensure_future(two.call(B, Add(1)))
            await asyncio.sleep(1)
            assert not other.done(), "nobody knows yet who is paused"
            two.store.pause_gate.set()
            assert await other == 1
            await asyncio.sleep(1)
            assert two.engine.is_paused(A)
            assert not call.done()
            assert await two.store.pauses() == [
                StoredPause(A, "somebody", one.clock.now_ms() - 2_000)
            ]
            await two.pauses.resume(A, principal="somebody")
            assert await call == 2

    simulate(run, loop=SimulatedLoop())


class SlowExecutor:
    """Takes its time; says how often it was asked to execute."""

    kind = KIND
    concurrency_max = 4

    def __init__(self, promise: Promise, *, takes_s: float = 0.0) -> None:
        self._promise: Promise = promise
        self.takes_s = takes_s
        self.executed = 0

    def promise(self, args: dict[str, Any]) -> Promise:
        return self._promise

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        raise AssertionError("nothing is prepared")

    async def execute(self, order: Order) -> Outcome:
        self.executed += 1
        await order.stream("delta", b"begun")
        await asyncio.sleep(self.takes_s)
        await order.stream("delta", b"done")
        return Outcome(status="done")

    async def reconcile(self, order: Order) -> Outcome | None:
        raise AssertionError("nothing is read back")


def askers(promise: Promise) -> Any:
    kind = EffectKind(name=KIND, prepares=False, promise=lambda _: promise)
    return lambda: (Gated(Asker(), GateRules(policy=Policy(), kinds={KIND: kind})),)


async def ask(node: SharedNode, timeout_ms: int = 60_000) -> None:
    await node.call(ASKER, Ask(kind=KIND, ref="e", timeout_ms=timeout_ms))


async def told(node: SharedNode) -> Any:
    return await node.engine.query(ASKER, GiveUp(ref=""))


@pytest.mark.requirement("EFFECT-OUTCOME-TOLD")
@pytest.mark.parametrize("promise", ["once", "repeatable"])
def test_an_effect_ends_where_it_began_though_its_shard_moved(
    tmp_path: Path, promise: Literal["once", "repeatable"]
) -> None:
    async def run() -> None:
        hands = [SlowExecutor(promise, takes_s=10), SlowExecutor(promise)]
        opened = nodes(tmp_path, "one", "two", machines=askers(promise), executors=hands)
        async with opened as (one, two):
            await one.gain(ASKER.shard)
            await ask(one)
            await asyncio.sleep(1)
            await one.give(ASKER.shard)
            await two.gain(ASKER.shard)
            await asyncio.sleep(5)
            assert await told(two) == ()
            await asyncio.sleep(10)
            assert await told(two) == ("e done",)
            assert [hand.executed for hand in hands] == [1, 0]

    simulate(run, loop=SimulatedLoop())


@pytest.mark.requirement("EFFECT-ONCE-UNKNOWN")
@pytest.mark.parametrize(
    ("promise", "end", "executed"),
    [("once", "e unknown", [1, 0]), ("repeatable", "e done", [1, 1])],
)
def test_an_effect_is_recovered_by_its_promise_once_its_session_has_ended_and_no_earlier(
    tmp_path: Path, promise: Literal["once", "repeatable"], end: str, executed: list[int]
) -> None:
    async def run() -> None:
        hands = [SlowExecutor(promise, takes_s=1_000), SlowExecutor(promise)]
        opened = nodes(tmp_path, "one", "two", machines=askers(promise), executors=hands)
        async with opened as (one, two):
            await one.gain(ASKER.shard)
            await ask(one, timeout_ms=5_000)
            await asyncio.sleep(0.5)
            await one.give(ASKER.shard)
            one.others.clear()  # cut off: nobody hears of it any more
            await two.gain(ASKER.shard)
            await asyncio.sleep(20)
            assert await told(two) == (), "its session lives"
            await one.end()
            await asyncio.sleep(20)
            assert await told(two) == (end,)
            assert [hand.executed for hand in hands] == executed

    simulate(run, loop=SimulatedLoop())


@pytest.mark.parametrize(
    ("promise", "end", "executed"), [("once", "e failed", 0), ("repeatable", "e done", 1)]
)
def test_nothing_is_handed_to_an_executor_past_the_lease(
    tmp_path: Path, promise: Literal["once", "repeatable"], end: str, executed: int
) -> None:
    async def run() -> None:
        hand = SlowExecutor(promise)
        opened = nodes(tmp_path, "one", machines=askers(promise), executors=[hand])
        async with opened as (one,):
            await one.gain(ASKER.shard)
            one.ownership.until_ns = one.clock.boot_ns()
            await ask(one)
            await asyncio.sleep(10)
            assert hand.executed == 0
            one.ownership.until_ns = one.clock.boot_ns() + 10**12
            await asyncio.sleep(10)
            assert await told(one) == (end,)
            assert hand.executed == executed

    simulate(run, loop=SimulatedLoop())


def test_effects_that_waited_in_a_gained_shard_are_executed(tmp_path: Path) -> None:
    async def run() -> None:
        hands = [SlowExecutor("once"), SlowExecutor("once")]
        opened = nodes(tmp_path, "one", "two", machines=askers("once"), executors=hands)
        async with opened as (one, two):
            await one.gain(ASKER.shard)
            await one.dispatcher.drain(0)
            await ask(one)
            await one.give(ASKER.shard)
            await two.gain(ASKER.shard)
            await asyncio.sleep(5)
            assert await told(two) == ("e done",)
            assert [hand.executed for hand in hands] == [0, 1]

    simulate(run, loop=SimulatedLoop())
