"""Submitted calls of an embedded runtime: kept, run once, in order, asked about, taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from kelpie import CallHandle, Runtime
from kelpie.core import limits
from kelpie.core.errors import (
    ActorFailedError,
    CallBegunError,
    CallCancelledError,
    ConflictError,
    DeadlineError,
    DiskFullError,
    DrainingError,
    InvalidFieldError,
    KeyReusedError,
    LimitExceededError,
    NotFoundError,
    OrderError,
)
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.records import Page
from tests.integration.actors.sample import LEAVING, Account, Gate
from tests.integration.actors.simulated import World, simulate
from tests.waiting import eventually_async

DEAD_S = 30.0  # more than enough, on a busy machine too
PAGE = Page(tenant=TENANT_DEFAULT, limit=10)


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncGenerator[Runtime]:
    Account.gates.clear()
    async with Runtime.open(path / "kelpie.db", actors=[Account], **options) as runtime:
        yield runtime
        runtime.engine.check_invariants()


def gate(name: str = "gate") -> Gate:
    Account.gates[name] = Gate()
    return Account.gates[name]


@pytest.mark.requirement("CALL-ONCE")
async def test_a_submitted_call_runs_by_itself_and_its_result_has_its_type(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.ref(Account, "a").add.submit(2, label="x")
        assert await handle.result() == 2
        assert await handle.status() == "completed"
        assert await runtime.ref(Account, "a").seen() == ["x"]
        again: CallHandle[int] = runtime.ref(Account, "a").add.handle(handle.call_id)
        assert await again.result() == 2
    async with opened(tmp_path) as runtime:
        kept = runtime.ref(Account, "a").add.handle(handle.call_id)
        assert await kept.result() == 2
        assert await runtime.ref(Account, "a").total() == 2


@pytest.mark.requirement("ACTOR-FIFO")
async def test_calls_of_one_caller_have_their_turns_in_the_order_of_submission(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        handles = [await account.add.submit(1, str(number)) for number in range(20)]
        assert [await handle.result() for handle in handles] == list(range(1, 21))
        assert await account.seen() == [str(number) for number in range(20)]


@pytest.mark.requirement("CALL-DURABLE")
async def test_what_was_submitted_before_a_restart_runs_after_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await runtime.pause(account)
        handles = [await account.add.submit(number) for number in (1, 2, 3)]
        assert [await handle.status() for handle in handles] == ["pending"] * 3
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        assert runtime.inspect(account).paused
        later = [account.add.handle(handle.call_id) for handle in handles]
        assert await later[0].status() == "pending"
        await runtime.resume(account)
        assert [await handle.result() for handle in later] == [1, 3, 6]


@pytest.mark.requirement("CALL-KEY")
async def test_the_same_key_and_request_name_the_same_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        once = runtime.ref(Account, "a", idempotency_key="k")
        first, second = await asyncio.gather(once.add.submit(5), once.add.submit(5))
        assert first.call_id == second.call_id
        assert await first.result() == 5
        with pytest.raises(KeyReusedError):
            await once.add.submit(6)
        other = await runtime.ref(Account, "b", idempotency_key="k").add.submit(6)
        assert other.call_id != first.call_id
    async with opened(tmp_path) as runtime:
        again = await runtime.ref(Account, "a", idempotency_key="k").add.submit(5)
        assert again.call_id == first.call_id
        assert await runtime.ref(Account, "a").total() == 5
        with pytest.raises(InvalidFieldError, match="Idempotency-Key"):
            await runtime.ref(Account, "a", idempotency_key="").add.submit(5)


@pytest.mark.requirement("ACTOR-FAILURE-CONTAINED")
@pytest.mark.parametrize("how", sorted(LEAVING))
def test_a_submitted_handler_that_leaves_by_no_exception_is_dead_and_others_run(
    tmp_path: Path, how: str
) -> None:
    async def main() -> None:
        async with World().opened(tmp_path, Account) as runtime:
            poisons = [
                await runtime.ref(Account, "a").leave.submit(how),
                await runtime.ref(Account, "b").leave_later.submit(how),
            ]
            other = await runtime.ref(Account, "c").add.submit(1)
            assert await other.result() == 1
            for poison in poisons:
                with pytest.raises(ActorFailedError):
                    await poison.result()
                assert await poison.status() == "dead"

    simulate(main)


@pytest.mark.requirement("CALL-ENDS")
async def test_a_refusal_with_odd_fields_ends_its_call_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        handle = await runtime.ref(Account, "a").refuse_oddly.submit()
        with pytest.raises(ConflictError, match="refused") as refused:
            await handle.result(timeout_s=DEAD_S)
        assert refused.value.fields["amount"] == str(1 << 80)
        assert str(refused.value.fields["what"]).startswith("<object")


@pytest.mark.requirement("CALL-CANCEL")
async def test_a_call_that_has_not_begun_is_taken_back_and_never_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await runtime.pause(account)
        handles = [await account.add.submit(10**number) for number in range(4)]
        for number in (0, 2):
            await handles[number].cancel()
            await handles[number].cancel()
            assert await handles[number].status() == "cancelled"
        with pytest.raises(CallCancelledError):
            await handles[0].result()
        await runtime.resume(account)
        assert await handles[1].result() == 10
        assert await handles[3].result() == 1010
        with pytest.raises(CallBegunError, match="is completed") as ended:
            await handles[1].cancel()
        assert ended.value.state == "completed"
        assert await account.total() == 1010


@pytest.mark.requirement("CALL-CANCEL")
async def test_many_calls_of_one_line_are_taken_back_at_once_and_the_line_goes_on(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await runtime.pause(account)
        handles = [await account.add.submit(1) for _ in range(300)]
        await asyncio.gather(*(handle.cancel() for handle in handles))
        last = await account.add.submit(7)
        await runtime.resume(account)
        assert await last.result() == 7
        assert await account.total() == 7


@pytest.mark.requirement("CALL-CANCEL")
async def test_a_call_that_runs_cannot_be_taken_back_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        running = await account.wait.submit("gate", 3)
        queued = await runtime.ref(Account, "a").add.submit(1)
        await door.entered.wait()
        assert await running.status() == "running"
        assert await queued.status() == "pending"
        with pytest.raises(CallBegunError, match="runs already") as begun:
            await running.cancel()
        assert begun.value.state == "running"
        await queued.cancel()
        door.opened.set()
        assert await running.result() == 3
        assert await account.total() == 3


async def test_a_cancelled_call_that_waits_in_a_mailbox_never_begins(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        async with asyncio.TaskGroup() as group:
            direct = group.create_task(account.wait("gate", 3))
            await door.entered.wait()
            queued = await account.add.submit(1)
            await eventually_async(
                lambda: _has_mail(runtime), within_s=DEAD_S, what="the call to be delivered"
            )
            await queued.cancel()
            assert runtime.inspect(account).mailbox == 0
            door.opened.set()
        assert direct.result() == 3
        following = await account.add.submit(4)
        assert await following.result() == 7


async def _has_mail(runtime: Runtime) -> bool:
    return runtime.inspect(runtime.ref(Account, "a")).mailbox == 1


class RefusingStore:
    """The real store, whose disk is full when a call is to be taken back."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def end_call(self, *_: Any, **__: Any) -> bool:
        raise DiskFullError("no space is left")


@pytest.mark.requirement("CALL-CANCEL")
async def test_a_call_that_could_not_be_taken_back_still_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, book = runtime.ref(Account, "a"), runtime.submissions
        await runtime.pause(account)
        first = await account.add.submit(1)
        second = await account.add.submit(2)
        await _refuse_to_take_back(book, first, second)
        await runtime.resume(account)
        assert [await first.result(), await second.result()] == [1, 3]


@pytest.mark.requirement("CALL-CANCEL")
async def test_a_delivered_call_that_could_not_be_taken_back_still_runs(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, book, door = runtime.ref(Account, "a"), runtime.submissions, gate()
        async with asyncio.TaskGroup() as group:
            busy = group.create_task(account.wait("gate", 10))
            await door.entered.wait()
            first = await account.add.submit(1)
            second = await account.add.submit(2)
            await eventually_async(
                lambda: _has_mail(runtime), within_s=DEAD_S, what="the call to be delivered"
            )
            await _refuse_to_take_back(book, first, second)
            door.opened.set()
        assert busy.result() == 10
        assert [await first.result(), await second.result()] == [11, 13]


async def _refuse_to_take_back(book: Any, *handles: CallHandle[int]) -> None:
    """Cancel the calls while the store refuses it."""
    whole, book._store = book._store, cast("Any", RefusingStore(book._store))
    for handle in handles:
        with pytest.raises(DiskFullError):
            await handle.cancel()
        assert await handle.status() == "pending"
    book._store = whole


async def test_a_call_that_deletes_its_actor_keeps_its_result(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        await account.add(5)
        handle = await account.close.submit()
        assert await handle.result() == 5
        assert await account.total() == 0
        assert await handle.status() == "completed"


@pytest.mark.requirement("CALL-ENDS")
async def test_a_refusal_is_the_end_of_a_call_and_keeps_its_type(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        refused = await account.refuse.submit()
        following = await account.add.submit(1)
        with pytest.raises(ConflictError, match="refused"):
            await refused.result()
        assert await refused.status() == "failed"
        assert await following.result() == 1
        large = await account.grow.submit(limits.ACTOR_STATE_BYTES_MAX + 1)
        with pytest.raises(LimitExceededError):
            await large.result()
        assert await runtime.dead_letters() == []


@pytest.mark.requirement("CALL-ENDS")
def test_a_call_that_fails_too_often_is_dead_and_can_be_replayed(tmp_path: Path) -> None:
    async def main() -> None:
        async with World().opened(tmp_path, Account) as runtime:
            account = runtime.ref(Account, "a")
            broken = await account.break_down.submit(1)
            with pytest.raises(ActorFailedError, match="a bug in break_down"):
                await broken.result()
            assert await broken.status() == "dead"
            (letter,) = await runtime.dead_letters()
            assert letter.attempts == limits.MESSAGE_ATTEMPTS_MAX
            assert "ZeroDivisionError" in letter.error
            await runtime.pause(account)
            await runtime.replay(letter.message_id)
            assert await broken.status() == "pending"
            await broken.cancel()
            assert await runtime.dead_letters() == []
            assert await account.total() == 0

    simulate(main)


@pytest.mark.requirement("CALL-WAIT")
async def test_a_look_waits_for_the_end_and_no_longer_than_it_may(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account, door = runtime.ref(Account, "a"), gate()
        handle = await account.wait.submit("gate", 1)
        await door.entered.wait()
        with pytest.raises(DeadlineError, match="ask again"):
            await handle.result(timeout_s=0.01)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(handle.result())
            await asyncio.sleep(0)
            door.opened.set()
        assert waiting.result() == 1
        for wait_s in (-1, limits.CALL_WAIT_MS_MAX / 1000 + 1):
            with pytest.raises(InvalidFieldError, match="wait_s"):
                await runtime.submissions.wait(TENANT_DEFAULT, handle.call_id, wait_s)


async def test_calls_are_found_by_id_and_by_list_within_their_tenant(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        first = await runtime.ref(Account, "a").add.submit(1)
        second = await runtime.ref(Account, "b").add.submit(1)
        await asyncio.gather(first.result(), second.result())
        found = await runtime.submissions.find(PAGE)
        assert [call.stored.call_id for call in found] == [first.call_id, second.call_id]
        with pytest.raises(NotFoundError, match="call-unknown"):
            await runtime.ref(Account, "a").add.handle("call-unknown").status()
        with pytest.raises(InvalidFieldError, match="is a call of add"):
            await runtime.ref(Account, "a").refuse.handle(first.call_id).status()
        with pytest.raises(InvalidFieldError, match="pending"):
            await runtime.submissions.find(PAGE, status="running")
    async with opened(tmp_path, tenant="other") as runtime:
        with pytest.raises(NotFoundError):
            await runtime.ref(Account, "a").add.handle(first.call_id).status()


async def test_only_commands_are_submitted_and_none_by_a_handler(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        account = runtime.ref(Account, "a")
        with pytest.raises(OrderError, match="only commands"):
            await account.total.submit()
        with pytest.raises(InvalidFieldError, match="amount"):
            await account.add.submit(cast("Any", "1"))
        with pytest.raises(OrderError, match=r"ctx\.send"):
            await account.submit_in_a_handler("b")
        with pytest.raises(OrderError, match="no submitted calls"):
            await account.handle_in_a_handler("b")
        runtime.engine.close_gate()
        with pytest.raises(DrainingError):
            await account.add.submit(1)


@pytest.mark.requirement("ACTOR-PAUSE-SURVIVES")
async def test_a_pause_holds_after_a_restart_until_somebody_resumes(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        await runtime.pause(runtime.ref(Account, "a"), principal="key:7")
    async with opened(tmp_path) as runtime:
        with pytest.raises(DeadlineError):
            await runtime.ref(Account, "a", timeout_s=0.02).add(1)
        await runtime.resume(runtime.ref(Account, "a"))
        assert await runtime.ref(Account, "a").add(1) == 1
    async with opened(tmp_path) as runtime:
        assert not runtime.inspect(runtime.ref(Account, "a")).paused
        assert await runtime.ref(Account, "a").add(1) == 2
