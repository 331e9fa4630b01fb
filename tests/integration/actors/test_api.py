"""The public API over a real SQLite store: what a turn promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kelpie import Actor, Runtime, State, command, query, ref, upcast
from kelpie.actors.supervisor import Supervisor
from kelpie.app.embed import EmbeddedWorld
from kelpie.core import limits
from kelpie.core.errors import (
    ActorFailedError,
    ConflictError,
    CycleError,
    DeadlineError,
    DefinitionError,
    DrainingError,
    InvalidFieldError,
    KeyReusedError,
    LimitExceededError,
    NotFoundError,
    OrderError,
    OverloadedError,
    StoreVersionError,
    VersionConflictError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.host.clock import HostClock
from kelpie.host.meter import HostMeter
from kelpie.host.rng import HostRng
from kelpie.sim.telemetry import RecordedTelemetry
from tests.integration.actors.sample import LEAVING, ODD_RESULTS, Account, Gate, Heavy, Ledger
from tests.integration.actors.simulated import World, simulate
from tests.waiting import eventually_async


class Plain(Actor[Ledger]):
    """Without hooks, so that it is held as its bytes."""

    @command
    def mistype(self, amount: Any) -> None:
        self.state.total = amount

    @query
    def total(self) -> int:
        return self.state.total


@asynccontextmanager
async def opened(path: Path, *kinds: type[Actor[Any]], **options: Any) -> AsyncGenerator[Runtime]:
    Account.gates.clear()
    Account.activated.clear()
    actors = kinds or (Account,)
    async with Runtime.open(path / "kelpie.db", actors=actors, **options) as runtime:
        yield runtime
        runtime.engine.check_invariants()


def gate(name: str = "gate") -> Gate:
    Account.gates[name] = Gate()
    return Account.gates[name]


async def test_three_lines_host_an_actor_and_it_is_there_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        assert await runtime.ref(Account, "a").add(2) == 2
    async with opened(tmp_path) as runtime:
        assert await runtime.ref(Account, "a").total() == 2


@pytest.mark.requirement("ACTOR-ONE-TURN", "ACTOR-FIFO")
async def test_commands_of_a_busy_actor_wait_and_keep_their_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(account.wait("gate", 10))
            await door.entered.wait()
            rest = [group.create_task(account.add(1, str(i))) for i in range(50)]
            await asyncio.sleep(0)
            assert runtime.inspect(account).mailbox == 50
            assert runtime.inspect(account).handler == "wait"
            assert not any(task.done() for task in rest)
            door.opened.set()
        assert first.result() == 10
        assert [task.result() for task in rest] == list(range(11, 61))
        assert await account.seen() == [str(i) for i in range(50)]


@pytest.mark.requirement("ACTOR-QUERY-INTERLEAVES")
async def test_a_query_reads_the_last_finished_state_while_a_handler_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        await account.add(7)
        async with asyncio.TaskGroup() as group:
            group.create_task(account.wait("gate"))
            await door.entered.wait()
            assert await account.total() == 7
            door.opened.set()
        assert await account.total() == 8


@pytest.mark.requirement("ACTOR-QUERY-READS-ONLY")
async def test_what_a_query_does_to_the_state_is_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(7)
        assert await account.spoil() == -1
        assert await account.total() == 7
        with pytest.raises(OrderError, match="a query changes nothing"):
            await account.emit_from_a_query()


@pytest.mark.requirement("ACTOR-REENTRANT-QUERY")
async def test_a_query_along_the_chain_sees_the_committed_state(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.ref(Account, "a").add(5)
        assert await runtime.ref(Account, "a").ask_back("b") == 5


@pytest.mark.requirement("ACTOR-CYCLE")
async def test_a_command_that_comes_back_to_its_chain_is_refused_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a", timeout_s=20)
        async with asyncio.timeout(5):
            with pytest.raises(CycleError, match=r"default/Account/a -> .*b -> .*a"):
                await account.come_back("b")
        assert await runtime.ref(Account, "b").total() == 0


@pytest.mark.requirement("ACTOR-CYCLE")
async def test_a_chain_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        with pytest.raises(CycleError, match="16 actors deep"):
            await runtime.ref(Account, "a").descend(limits.CALL_DEPTH_MAX)


@pytest.mark.requirement("ACTOR-CROSSED-CHAINS")
async def test_crossed_chains_end_by_their_deadline_and_leave_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        left, right = gate("left"), gate("right")
        # Each waits for the other; the one with the shorter deadline gives way.
        async with asyncio.TaskGroup() as group:
            gives_way = group.create_task(
                _outcome(runtime.ref(Account, "a", timeout_s=0.3).cross("left", "b"))
            )
            goes_on = group.create_task(
                _outcome(runtime.ref(Account, "b", timeout_s=60).cross("right", "a"))
            )
            await left.entered.wait()
            await right.entered.wait()
            left.opened.set()
            right.opened.set()
        assert isinstance(gives_way.result(), DeadlineError)
        assert goes_on.result() == 1, "the other chain goes on once the actor is free"
        assert await runtime.ref(Account, "a").add(1) == 2
        assert await runtime.ref(Account, "b").add(1) == 1, "nothing came of the call that ended"


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except (DeadlineError, VersionConflictError, OverloadedError, DrainingError) as error:
        return error


@pytest.mark.requirement("ACTOR-DEADLINES")
async def test_the_deadline_of_a_caller_holds_for_the_whole_chain(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        left_ms = await runtime.ref(Account, "a", timeout_s=2).descend(3)
        assert 0 < left_ms <= 2_000


@pytest.mark.requirement("ACTOR-DEADLINES")
async def test_a_handler_that_does_not_end_is_stopped_at_its_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        with pytest.raises(DeadlineError):
            await runtime.ref(Account, "a", timeout_s=0.05).linger()
        assert await runtime.ref(Account, "a").add(1) == 1


@pytest.mark.requirement("ACTOR-DEADLINES")
async def test_a_call_that_waited_past_its_deadline_never_begins(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        async with asyncio.TaskGroup() as group:
            group.create_task(account.wait("gate", 10))
            await door.entered.wait()
            with pytest.raises(DeadlineError):
                await runtime.ref(Account, "a", timeout_s=0.03).add(1_000)
            door.opened.set()
        assert await account.add(0) == 10


@pytest.mark.requirement("ACTOR-MAILBOX-BOUND")
async def test_a_full_mailbox_refuses_with_a_retriable_error_and_drops_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        async with asyncio.TaskGroup() as group:
            group.create_task(account.wait("gate", 0))
            await door.entered.wait()
            calls = [
                group.create_task(_outcome(account.add(1)))
                for _ in range(limits.MAILBOX_DEPTH_MAX + 10)
            ]
            await asyncio.sleep(0)
            refused = [call.result() for call in calls if call.done()]
            assert len(refused) == 10
            assert all(isinstance(each, OverloadedError) and each.retriable for each in refused)
            door.opened.set()
        assert await account.total() == limits.MAILBOX_DEPTH_MAX


@pytest.mark.requirement("ACTOR-CANCELLATION")
@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_cancelled_at_any_await_tears_no_turn(tmp_path: Path, steps: int) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.ref(Account, "a").add(0)
        async with asyncio.TaskGroup() as group:
            call = group.create_task(runtime.ref(Account, "a").push("b", 5))
            for _ in range(steps):
                await asyncio.sleep(0)
            begun = steps > 0
            call.cancel()

        async def settled() -> bool:
            return not runtime.inspect(runtime.ref(Account, "a")).handler

        await eventually_async(settled, within_s=5, what="the handler ends")
        totals = [await runtime.ref(Account, key).total() for key in ("a", "b")]
        assert totals == ([5, 5] if begun else [0, 0])


@pytest.mark.requirement("ACTOR-CANCELLATION")
async def test_a_handler_may_give_up_by_its_own_timeout_and_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        assert await runtime.ref(Account, "a").give_up(0.01) == "gave up"
        assert await runtime.ref(Account, "a").total() == 1


@pytest.mark.requirement("ACTOR-ROLLBACK")
async def test_an_exception_rolls_back_and_discards_the_activation(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(3)
        assert Account.activated == ["a"]
        with pytest.raises(ActorFailedError, match="a bug in break_down") as caught:
            await account.break_down(100)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert await account.total() == 3
        assert Account.activated == ["a", "a"]
        with pytest.raises(ActorFailedError, match="a bug in break_later"):
            await account.break_later(100)
        assert await account.add(1) == 4
        assert Account.activated == ["a", "a", "a"]


@pytest.mark.requirement("ACTOR-FAILURE-CONTAINED")
@pytest.mark.parametrize("how", sorted(LEAVING))
async def test_a_handler_that_leaves_by_no_exception_at_all_fails_its_call_alone(
    tmp_path: Path, how: str
) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(3)
        with pytest.raises(ActorFailedError, match=f"left by {how}"):
            await account.leave(how)
        with pytest.raises(ActorFailedError, match=f"left by {how}"):
            await runtime.ref(Account, "a", idempotency_key="k").leave(how)
        with pytest.raises(ActorFailedError, match=f"left by {how}"):
            await account.leave_later(how)
        with pytest.raises(ActorFailedError, match=f"left by {how}"):
            await account.leave_asking(how)
        assert await account.add(1) == 4


@pytest.mark.requirement("ACTOR-ROLLBACK")
async def test_a_state_that_could_not_be_read_again_is_not_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, Account, Plain) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(3)
        with pytest.raises(ActorFailedError, match=r"Expected `int`, got `str` - at `\$\.total`"):
            await account.mistype("much")
        with pytest.raises(ActorFailedError, match=r"Expected `int`, got `str` - at `\$\.total`"):
            await account.mistype_later("much")
        assert await account.add(1) == 4
        with pytest.raises(ActorFailedError, match="Expected `int`"):
            await runtime.ref(Plain, "a").mistype("much")
        assert await runtime.ref(Plain, "a").total() == 0
    async with opened(tmp_path) as runtime:
        assert await runtime.ref(Account, "a").total() == 4


@pytest.mark.requirement("ACTOR-ROLLBACK")
@pytest.mark.parametrize("what", sorted(ODD_RESULTS))
async def test_a_result_that_cannot_travel_undoes_its_turn(tmp_path: Path, what: str) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(3)
        with pytest.raises(ActorFailedError, match="nothing was changed"):
            await account.return_oddly(what)
        assert await account.add(1) == 4


async def test_arguments_that_no_store_takes_are_refused_by_type(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        large = b'{"amount": 18446744073709551616}'
        actor = ActorId(TENANT_DEFAULT, "Account", "a")
        with pytest.raises(InvalidFieldError, match="arguments: cannot be kept"):
            await runtime.call(actor, "mistype", large, principal="p", key="k")
        with pytest.raises(InvalidFieldError, match="surrogates"):
            await runtime.ref(Account, "a").mistype_later.submit([1, "\ud800"])
        for malformed in (b'{"amount\xff": 1}', b'{"amount": ' + b"[" * 5_000):
            with pytest.raises(InvalidFieldError, match="mistype"):
                await runtime.call(actor, "mistype", malformed, principal="p")
        assert await runtime.ref(Account, "a").total() == 0


@pytest.mark.requirement("ACTOR-ROLLBACK")
async def test_a_typed_error_reaches_the_caller_and_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        with pytest.raises(ConflictError, match="refused"):
            await runtime.ref(Account, "a").refuse()
        assert await runtime.ref(Account, "a").total() == 0


@pytest.mark.requirement("ACTOR-CALL-ORDER")
async def test_a_call_after_the_first_change_is_a_typed_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        with pytest.raises(OrderError, match="after this turn's first change"):
            await runtime.ref(Account, "a").change_then_call("b")
        assert await runtime.ref(Account, "a").total() == 0
        assert await runtime.ref(Account, "b").total() == 0


async def test_a_reference_without_a_runtime_says_what_to_use() -> None:
    with pytest.raises(OrderError, match=r"runtime\.ref"):
        await ref(Account, "a").add(1)
    with pytest.raises(OrderError, match="only in the actor's own turn"):
        _ = ref(Account, "a").state


@pytest.mark.requirement("ACTOR-ARGUMENTS")
async def test_arguments_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        untyped: Any = runtime.ref(Account, "a")
        with pytest.raises(InvalidFieldError, match=r"Expected `int`, got `str` - at `\$.amount`"):
            await untyped.add("two")
        with pytest.raises(InvalidFieldError, match="amount"):
            await untyped.add()
        actor = ActorId(TENANT_DEFAULT, "Account", "a")
        call = runtime.call
        assert await call(actor, "add", b'{"amount": 2}', principal="t") == b"2"
        assert await call(actor, "total", b"", principal="t") == b"2"
        with pytest.raises(InvalidFieldError, match="unknown field `more`"):
            await call(actor, "add", b'{"amount": 2, "more": 1}', principal="t")
        with pytest.raises(NotFoundError, match=r"Account\.tick.*Account has add, "):
            await call(actor, "tick", b'{"name": "x"}', principal="t")
        with pytest.raises(NotFoundError, match="marked @reminder, and only the runtime"):
            await untyped.tick("x")
        stranger = ActorId(TENANT_DEFAULT, "Counter", "a")
        with pytest.raises(NotFoundError, match="hosted here: Account"):
            await call(stranger, "add", b'{"amount": 2}', principal="t")
        number: Any = 17
        with pytest.raises(InvalidFieldError, match=r"actor\.key: 17 must be a str, and is int"):
            await runtime.ref(Account, number).add(1)


@pytest.mark.requirement("ACTOR-EXACTLY-ONCE")
async def test_messages_arrive_once_each_in_order_and_across_a_restart(tmp_path: Path) -> None:
    labels = [str(i) for i in range(40)]
    async with opened(tmp_path) as runtime:
        await runtime.ref(Account, "a").pass_on("b", labels)
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "b")

        async def arrived() -> bool:
            return await account.total() == 40

        await eventually_async(arrived, within_s=5, what="40 messages arrive")
        assert await account.seen() == labels


@pytest.mark.requirement("ACTOR-DEAD-LETTER")
def test_a_poisoned_message_is_kept_with_its_traceback_and_can_be_replayed(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Account) as runtime:
            await runtime.ref(Account, "a").pass_bug("b")
            await world.clock.sleep(60)
            (letter,) = await runtime.dead_letters()
            assert letter.attempts == limits.MESSAGE_ATTEMPTS_MAX
            assert 'raise ZeroDivisionError("a bug in break_down")' in letter.error
            await runtime.replay(letter.message_id)
            assert not await runtime.dead_letters()
            with pytest.raises(NotFoundError, match="dead letter"):
                await runtime.replay(letter.message_id)
            await world.clock.sleep(60)
            assert await runtime.dead_letters(), "it was tried again, and died again"

    simulate(main)


@pytest.mark.requirement("ACTOR-PAUSE")
async def test_a_paused_actor_answers_queries_and_goes_on_when_resumed(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(1)
        await runtime.pause(account)
        async with asyncio.TaskGroup() as group:
            call = group.create_task(account.add(1))
            await asyncio.sleep(0)
            assert not call.done()
            assert await account.total() == 1
            assert runtime.inspect(account).paused
            await runtime.resume(account)
        assert call.result() == 2
        await runtime.pause(runtime.ref(Account, "cold"))
        with pytest.raises(DeadlineError):
            await runtime.ref(Account, "cold", timeout_s=0.03).add(1)
        await runtime.resume(runtime.ref(Account, "cold"))
        assert await runtime.ref(Account, "cold").add(0) == 0


@pytest.mark.requirement("ACTOR-KILL")
async def test_a_killed_handler_fails_as_retriable_and_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        await account.add(1)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_outcome(account.wait("gate")))
            await door.entered.wait()
            queued = group.create_task(_outcome(account.add(1)))
            await asyncio.sleep(0)
            assert runtime.kill(account)
        assert isinstance(running.result(), VersionConflictError)
        assert isinstance(queued.result(), VersionConflictError)
        assert await account.add(1) == 2
        assert not runtime.kill(runtime.ref(Account, "nobody"))


@pytest.mark.requirement("ACTOR-EVICTION")
async def test_idle_actors_leave_under_a_memory_budget_and_busy_ones_stay(tmp_path: Path) -> None:
    budget = 8 * (limits.RESIDENT_RECORD_BYTES + 64)
    async with opened(tmp_path, resident_bytes_max=budget) as runtime:
        door = gate()
        async with asyncio.TaskGroup() as group:
            busy = group.create_task(runtime.ref(Account, "busy").wait("gate", 9))
            await door.entered.wait()
            for i in range(100):
                await runtime.ref(Account, f"a{i}").add(i)
            assert runtime.engine.resident_bytes <= budget + limits.RESIDENT_RECORD_BYTES + 64
            assert runtime.inspect(runtime.ref(Account, "busy")).handler == "wait"
            assert runtime.inspect(runtime.ref(Account, "a0")).phase == "absent"
            door.opened.set()
        assert busy.result() == 9
        assert [await runtime.ref(Account, f"a{i}").total() for i in range(100)] == list(range(100))


@pytest.mark.requirement("ACTOR-STATE-BOUND")
async def test_a_large_state_is_stored_in_pieces_and_a_larger_one_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.grow(limits.ACTOR_STATE_BYTES_MAX - 1_000)
        with pytest.raises(LimitExceededError, match=r"actor\.state"):
            await account.grow(limits.ACTOR_STATE_BYTES_MAX + 1)
    async with opened(tmp_path) as runtime:
        (text,) = await runtime.ref(Account, "a").seen()
        assert len(text) == limits.ACTOR_STATE_BYTES_MAX - 1_000


@pytest.mark.requirement("ACTOR-KV")
async def test_the_map_is_ordered_ranged_and_shows_a_turn_its_own_writes(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        async with asyncio.TaskGroup() as group:
            for i in range(9):
                group.create_task(account.file(f"k{i}", i))
        assert await account.file("k3", 33) == 3
        page = await account.files(limit=4)
        assert list(page) == ["k0", "k1", "k2", "k3"]
        assert await account.files(start="k3\0", limit=3) == {"k4": 4, "k5": 5, "k6": 6}
        assert await account.replace_files("k1", "k00") == ["k0", "k00", "k2"]
        await account.unfile("k0")
        assert list(await account.files(limit=2)) == ["k00", "k2"]
        assert await runtime.ref(Account, "b").files() == {}


@pytest.mark.requirement("ACTOR-IDEMPOTENCY")
async def test_a_key_makes_one_turn_and_its_request_names_inner_calls(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        once = runtime.ref(Account, "a", idempotency_key="k1")
        assert await once.push("b", 5) == 5
        assert await once.push("b", 5) == 5
        drawn = await once.draw()
        assert await once.draw() == drawn
        with pytest.raises(KeyReusedError):
            await once.push("b", 6)
        assert await runtime.ref(Account, "b").total() == 5
    async with opened(tmp_path) as runtime:
        again = runtime.ref(Account, "a", idempotency_key="k1")
        assert await asyncio.gather(*(again.push("b", 5) for _ in range(5))) == [5] * 5
        assert await runtime.ref(Account, "b").total() == 5


@pytest.mark.requirement("ACTOR-REMINDERS")
async def test_reminders_fire_in_order_survive_a_restart_and_can_be_cancelled(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.later("third", 150)
        await account.later("first", 20)
        await account.later("second", 60)
        await account.later("never", 30)
        await account.never_mind("never")
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")

        async def fired() -> bool:
            return len(await account.seen()) >= 3

        await eventually_async(fired, within_s=5, what="three reminders fire")
        assert await account.seen() == ["first", "second", "third"]


@pytest.mark.requirement("ACTOR-EVENTS")
async def test_events_are_followed_by_cursor_without_gaps(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.pass_on("b", ["x", "y"])
        heard = []
        async with asyncio.TaskGroup() as group:
            group.create_task(account.pass_on("b", ["z"]))
            async for event in runtime.follow(account, after=1):
                heard.append((event.sequence, event.read(str)))
                if len(heard) == 2:
                    break
        assert heard == [(2, "y"), (3, "z")]


@pytest.mark.requirement("ACTOR-DRAIN")
async def test_a_draining_runtime_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    door = Gate()
    async with opened(tmp_path) as runtime:
        Account.gates["gate"] = door
        async with asyncio.TaskGroup() as group:
            running = group.create_task(runtime.ref(Account, "a").wait("gate", 4))
            await door.entered.wait()
            drained = group.create_task(runtime.engine.drain())
            await asyncio.sleep(0)
            with pytest.raises(DrainingError):
                await runtime.ref(Account, "b").add(1)
            assert not drained.done()
            door.opened.set()
        assert running.result() == 4


class OldState(State):
    cents: int = 0


class NewState(State):
    schema_version = 3
    euros: float = 0.0
    currency: str = ""

    @upcast(from_version=1)
    @staticmethod
    def name_currency(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "currency": "EUR"}

    @upcast(from_version=2)
    @staticmethod
    def use_euros(old: dict[str, Any]) -> dict[str, Any]:
        return {"euros": old["cents"] / 100, "currency": old["currency"]}


class GapState(State):
    schema_version = 2
    cents: int = 0


class OldPurse(Actor[OldState]):
    actor_type = "purse"

    @command
    def put(self, cents: int) -> None:
        self.state.cents += cents


class NewPurse(Actor[NewState]):
    actor_type = "purse"

    @query
    def show(self) -> str:
        return f"{self.state.euros} {self.state.currency}"


class GapPurse(Actor[GapState]):
    actor_type = "purse"

    @query
    def show(self) -> int:
        return self.state.cents


@pytest.mark.requirement("ACTOR-STATE-VERSION")
async def test_an_older_state_is_carried_forward_and_an_unknown_one_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, OldPurse) as runtime:
        await runtime.ref(OldPurse, "a").put(250)
    async with opened(tmp_path, NewPurse) as runtime:
        assert await runtime.ref(NewPurse, "a").show() == "2.5 EUR"
        assert await runtime.ref(NewPurse, "b").show() == "0.0 "
    async with opened(tmp_path, GapPurse) as runtime:
        with pytest.raises(StoreVersionError, match=r"purse/a .*upcast\(from_version=1\)"):
            await runtime.ref(GapPurse, "a").show()
    async with opened(tmp_path, OldPurse) as runtime:
        await runtime.ref(OldPurse, "a").put(1)
    async with opened(tmp_path, NewPurse) as runtime:
        assert await runtime.ref(NewPurse, "a").show() == "2.51 EUR"


class RenamedState(State):
    euros: int = 0


class RenamedPurse(Actor[RenamedState]):
    actor_type = "purse"

    @command
    def put(self, euros: int) -> None:
        self.state.euros += euros


@pytest.mark.requirement("ACTOR-STATE-VERSION")
async def test_a_renamed_field_is_refused_and_not_reset(tmp_path: Path) -> None:
    async with opened(tmp_path, OldPurse) as runtime:
        await runtime.ref(OldPurse, "a").put(250)
    async with opened(tmp_path, RenamedPurse) as runtime:
        with pytest.raises(StoreVersionError, match=r"unknown field `cents`.*raise schema_v"):
            await runtime.ref(RenamedPurse, "a").put(1)
    async with opened(tmp_path, OldPurse) as runtime:
        await runtime.ref(OldPurse, "a").put(250)
    async with opened(tmp_path, NewPurse) as runtime:
        assert await runtime.ref(NewPurse, "a").show() == "5.0 EUR"


class Wordy(Actor[OldState]):
    actor_type = "purse"

    @command
    def put(self, cents: int) -> str:
        self.state.cents += cents
        return f"{self.state.cents} cents"


class Numeric(Actor[OldState]):
    actor_type = "purse"

    @command
    def put(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents


@pytest.mark.requirement("ACTOR-IDEMPOTENCY")
async def test_a_kept_reply_of_another_type_is_an_error_and_no_second_turn(tmp_path: Path) -> None:
    async with opened(tmp_path, Wordy) as runtime:
        assert await runtime.ref(Wordy, "a", idempotency_key="k").put(250) == "250 cents"
    async with opened(tmp_path, Numeric) as runtime:
        with pytest.raises(ConflictError, match="put was carried out, and returns another type"):
            await runtime.ref(Numeric, "a", idempotency_key="k").put(250)
        assert await runtime.ref(Numeric, "a").put(1) == 251


class Careless(Actor[OldState]):
    @command
    def put(self, cents: Any) -> None:
        self.state.cents = cents

    @command
    async def put_later(self, cents: Any) -> None:
        self.state.cents = cents

    @query
    def cents(self) -> int:
        return self.state.cents


@pytest.mark.requirement("ACTOR-ROLLBACK")
async def test_a_state_that_could_not_be_loaded_again_is_not_stored(tmp_path: Path) -> None:
    async with opened(tmp_path, Careless) as runtime:
        purse = runtime.ref(Careless, "a")
        await purse.put(5)
        for put, name in ((purse.put, "put"), (purse.put_later, "put_later")):
            wrong = rf"Careless\.{name} left a state that does not fit OldState.*\$\.cents"
            with pytest.raises(ActorFailedError, match=wrong):
                await put("five")
        assert await purse.cents() == 5
    async with opened(tmp_path, Careless) as runtime:
        assert await runtime.ref(Careless, "a").cents() == 5


@pytest.mark.requirement("ACTOR-BLOCKING")
@pytest.mark.parametrize("method", ["compute", "compute_later", "look_long", "hold"])
async def test_a_handler_that_holds_the_loop_is_named(tmp_path: Path, method: str) -> None:
    telemetry, meter = RecordedTelemetry(), HostMeter()
    world = EmbeddedWorld(clock=HostClock(), rng=HostRng(), telemetry=telemetry, meter=meter)
    async with opened(tmp_path, Heavy, world=world) as runtime:
        await getattr(runtime.ref(Heavy, "a"), method)()
    meter.close()
    named = [fields for _, event, fields in telemetry.logs if event == "turn.blocked_loop"]
    assert len(named) == 1
    assert (named[0]["actor"], named[0]["method"]) == ("default/Heavy/a", method)
    assert named[0]["cause"] == ("waiting" if method == "hold" else "computing")
    duration_ms = named[0]["duration_ms"]
    assert isinstance(duration_ms, int)
    assert duration_ms >= limits.BLOCKING_MS_MAX


@pytest.mark.requirement("ACTOR-SUPERVISION")
async def test_a_supervised_task_that_fails_restarts_and_says_so() -> None:
    telemetry = RecordedTelemetry()
    supervisor = Supervisor(clock=HostClock(), telemetry=telemetry)
    done = asyncio.Event()
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ZeroDivisionError("again")
        done.set()

    supervisor.keep("a-task", work)
    async with asyncio.timeout(5):
        await done.wait()
    await supervisor.close()
    reports = [fields for _, event, fields in telemetry.logs if event == "task.failed"]
    assert len(reports) == 2
    assert all(each["restarts"] and "ZeroDivisionError" in str(each["trace"]) for each in reports)


async def test_classes_that_cannot_be_hosted_are_refused_by_name(tmp_path: Path) -> None:
    class Bare(Actor[OldState]):
        pass

    class Stubborn(Actor[OldState]):
        def __init__(self) -> None:
            self.x = 1

        @query
        def show(self) -> int:
            return self.x

    class Loose(Actor[OldState]):
        @command
        def take(self, *many: int) -> None:
            self.state.cents += sum(many)

    class Clash(Actor[OldState]):
        @command
        def print(self, reply_type: str) -> None:
            self.state.cents += len(reply_type)

    class Needy(Actor[NeedyState]):
        @query
        def show(self) -> int:
            return self.state.cents

    cases: list[tuple[type[Actor[Any]], str]] = [
        (Bare, "no @command or @query"),
        (Stubborn, "use on_activate"),
        (Loose, "name each one"),
        (Clash, "'reply_type' must have another name"),
        (Needy, "needs a default"),
    ]
    for kind, problem in cases:
        with pytest.raises(DefinitionError, match=problem):
            async with opened(tmp_path, kind):
                raise AssertionError("it was hosted")


class NeedyState(State):
    cents: int
