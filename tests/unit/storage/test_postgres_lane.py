"""What becomes of members before a server that refuses, fails or stays away at a chosen moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, cast

import asyncpg
import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    DiskFullError,
    FencedError,
    KelpieError,
    NotFoundError,
    OverloadedError,
    StoreError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import (
    COMMIT_BATCH_ROWS_MAX,
    COMMIT_QUEUE_BYTES_MAX,
    COMMIT_QUEUE_DEPTH_MAX,
)
from kelpie.storage.postgres.lane import Lane, Room
from kelpie.storage.postgres.link import RefusedError, ServerFailedError, WriterLink
from kelpie.storage.postgres.migrations.apply import CROWDED, FENCED, REFUSED
from kelpie.storage.postgres.plan import BatchAnswer, Submit
from kelpie.storage.postgres.singles import (
    BuryReminder,
    ChangePause,
    Fence,
    ReleaseStore,
    ReviveMessage,
)
from kelpie.storage.records import (
    AuditAppend,
    Commit,
    ReminderRow,
    StoredPause,
    Submission,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kelpie.storage.postgres.driver import ServerConnection

T = TypeVar("T")

ADA = ActorId(TENANT_DEFAULT, "agent", "ada")
BOB = ActorId(TENANT_DEFAULT, "agent", "bob")
NOTE = AuditAppend("noted", "p", b"")
AWAY = StoreError("the database cannot be reached")
EPOCH = 3
# Places of arrays among the arguments.
CREATED, FORGOTTEN = 7, 25


class ScriptedTables:
    """Answers a query by the first of its words that the test laid down; nothing else is there."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {"SELECT epoch FROM shards": EPOCH}
        self.asked: list[str] = []

    async def fetchval(self, query: str, *_args: Any) -> Any:
        self.asked.append(query)
        return next((value for words, value in self.rows.items() if words in query), None)

    fetch = fetchrow = fetchval

    def count_asked(self, words: str) -> int:
        return sum(words in query for query in self.asked)


class ScriptedWriter(WriterLink):
    """Meets each write with the next of ``answers``; after these, everything is written."""

    def __init__(self, *answers: BaseException | int) -> None:
        self.writer = 0
        self.answers = list(answers)
        self.sent: list[Sequence[Any]] = []
        self.called: list[str] = []
        self.tables = ScriptedTables()
        self.away: KelpieError | None = None  # what every question meets
        self.is_reached = asyncio.Event()
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.closings = 0

    async def commit(self, arguments: Sequence[Any]) -> BatchAnswer:
        self.sent.append(arguments)
        self.is_reached.set()
        await self.may_go.wait()
        self._answer()
        return BatchAnswer(len(self.sent), [])

    async def call(self, function: str, *_arguments: Any) -> int:
        self.called.append(function)
        return self._answer()

    async def ask(self, question: Callable[[ServerConnection], Awaitable[T]]) -> T:
        if self.away is not None:
            raise self.away
        return await question(cast("ServerConnection", self.tables))

    async def close(self) -> None:
        self.closings += 1

    def _answer(self) -> int:
        answer = self.answers.pop(0) if self.answers else 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


def lane_of(link: ScriptedWriter, *shards: int) -> Lane:
    return Lane(link, Room(), shards=lambda: shards)


def commit(actor: ActorId = ADA, **changes: Any) -> Commit:
    fields: dict[str, Any] = {
        "actor": actor,
        "shard": actor.shard,
        "epoch": EPOCH,
        "incarnation": 1,
        "expected_version": 0,
        "schema_version": 1,
        "now_ms": 5,
    }
    return Commit(**(fields | changes))


def submission(key: str = "") -> Submit:
    call = Submission(
        call_id="new",
        actor=ADA,
        method="m",
        sender=BOB,
        principal="p",
        key=key,
        request=digest_bytes(b""),
        body=b"",
        now_ms=7,
    )
    return Submit(call, EPOCH)


async def outcomes_of(lane: Lane, *members: Any) -> list[Any]:
    return await asyncio.gather(
        *(lane.submit(member, 1) for member in members), return_exceptions=True
    )


# --- queue --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size_bytes"), [(COMMIT_QUEUE_DEPTH_MAX, 0), (1, COMMIT_QUEUE_BYTES_MAX)]
)
async def test_a_member_is_turned_away_while_too_much_waits_before_all_lanes(
    count: int, size_bytes: int
) -> None:
    link, room = ScriptedWriter(), Room()
    lane = Lane(link, room, shards=lambda: ())
    room.count, room.size_bytes = count, size_bytes
    with pytest.raises(OverloadedError, match="wait for the disk; try again later") as refused:
        await lane.submit(commit(), 1)
    assert refused.value.fields["waiting"] == count
    assert (lane.waiting, link.sent) == (0, [])
    room.count = room.size_bytes = 0
    assert (await lane.submit(commit(), 1)).version == 1
    assert (room.count, room.size_bytes) == (0, 0)


async def test_what_one_batch_cannot_hold_goes_in_order_with_the_next() -> None:
    link = ScriptedWriter()
    actors = [ActorId(TENANT_DEFAULT, "agent", f"a{n}") for n in range(COMMIT_BATCH_ROWS_MAX + 1)]
    receipts = await outcomes_of(lane_of(link), *map(commit, actors))
    assert {receipt.version for receipt in receipts} == {1}
    names = [[row[1] for row in arguments[CREATED]] for arguments in link.sent]
    assert [len(batch) for batch in names] == [COMMIT_BATCH_ROWS_MAX, 1]
    assert names[0] + names[1] == list(map(str, actors))


async def test_a_defect_fails_the_batch_that_met_it_and_no_other() -> None:
    link = ScriptedWriter(ValueError("a defect"))
    lane = lane_of(link, 1)
    lane.clean()
    failed, also_failed = await outcomes_of(lane, commit(), commit(BOB))
    assert type(failed) is type(also_failed) is StoreError
    assert "could not be carried out: ValueError('a defect')" in str(failed)
    assert isinstance(failed.__cause__, ValueError)
    assert not lane.has_housework
    assert (await lane.submit(commit(), 1)).version == 1
    await lane.close()
    assert link.closings == 1


async def test_who_gives_up_on_closing_does_not_keep_another_from_it() -> None:
    link = ScriptedWriter()
    link.may_go.clear()
    lane = lane_of(link)
    written = lane.submit(commit(), 1)
    async with asyncio.TaskGroup() as group:
        hasty, patient = group.create_task(lane.close()), group.create_task(lane.close())
        await link.is_reached.wait()
        hasty.cancel()
        await asyncio.wait([hasty])
        assert link.closings == 0
        link.may_go.set()
        await patient
    assert hasty.cancelled()
    assert link.closings == 1
    assert written.result().version == 1
    with pytest.raises(StoreError, match="the store is closed"):
        await lane.submit(commit(), 1)


@pytest.mark.parametrize("refusal", [None, NotFoundError("actor", "ada")])
async def test_a_single_write_is_carried_out_although_nobody_waits_for_it(
    refusal: KelpieError | None,
) -> None:
    link, done = ScriptedWriter(), []

    async def single(lane: Lane) -> None:
        done.append(lane)
        if refusal is not None:
            raise refusal

    lane = lane_of(link)
    given_up = lane.submit(single, 1)
    given_up.cancel()
    assert (await lane.submit(commit(), 1)).version == 1
    assert done == [lane]
    assert given_up.cancelled()


async def test_housework_that_the_database_keeps_from_us_is_left_to_the_next_deletion() -> None:
    link = ScriptedWriter()
    link.away = AWAY
    lane = lane_of(link, 1)
    lane.clean()
    assert (await lane.submit(commit(), 1)).version == 1
    await lane.close()
    assert not lane.has_housework


# --- refusals -----------------------------------------------------------------------------------


async def test_a_full_disk_fails_every_member_without_another_attempt() -> None:
    link = ScriptedWriter(ServerFailedError(asyncpg.DiskFullError("no space left")))
    outcomes = await outcomes_of(lane_of(link), commit(), commit(BOB))
    assert [type(outcome) for outcome in outcomes] == [DiskFullError] * 2
    assert len(link.sent) == 1


async def test_a_fence_that_the_epochs_do_not_explain_is_searched_by_halves() -> None:
    link = ScriptedWriter(RefusedError(FENCED, ""))
    epochs = [{"shard": actor.shard, "epoch": EPOCH} for actor in (ADA, BOB)]
    link.tables.rows["SELECT shard, epoch FROM shards"] = epochs
    receipts = await outcomes_of(lane_of(link), commit(), commit(BOB))
    assert [receipt.version for receipt in receipts] == [1, 1]
    assert [len(arguments[CREATED]) for arguments in link.sent] == [2, 1, 1]


async def test_a_call_to_a_lost_shard_is_refused_and_its_neighbours_are_written() -> None:
    link = ScriptedWriter(RefusedError(FENCED, ""))
    epochs = [{"shard": ADA.shard, "epoch": EPOCH + 1}, {"shard": BOB.shard, "epoch": EPOCH}]
    link.tables.rows["SELECT shard, epoch FROM shards"] = epochs
    refused, receipt = await outcomes_of(lane_of(link), submission(), commit(BOB))
    assert isinstance(refused, FencedError)
    assert refused.fields["current"] == EPOCH + 1
    assert receipt.version == 1
    assert len(link.sent) == 2


async def test_a_fence_that_nobody_can_look_at_fails_all_its_members() -> None:
    link = ScriptedWriter(RefusedError(FENCED, ""))
    link.away = AWAY
    assert await outcomes_of(lane_of(link), commit(), commit(BOB)) == [AWAY, AWAY]
    assert len(link.sent) == 1


async def test_a_link_whose_chain_cannot_be_read_is_not_written() -> None:
    link = ScriptedWriter()
    link.away = AWAY
    outcomes = await outcomes_of(lane_of(link), commit(audit=(NOTE,)), commit(BOB))
    assert outcomes == [AWAY, AWAY]
    assert link.sent == []


async def test_a_refusal_without_a_reason_is_final_at_the_third_attempt() -> None:
    link = ScriptedWriter(*[RefusedError(REFUSED, "")] * 3)
    with pytest.raises(StoreError, match="no reason that can be found"):
        await lane_of(link).submit(commit(audit=(NOTE,)), 1)
    assert len(link.sent) == 3
    assert link.tables.count_asked("FROM audit") == 4, "the chain is read anew after each"


async def test_a_refused_batch_reads_its_chains_anew_before_its_halves() -> None:
    link = ScriptedWriter(RefusedError(REFUSED, ""))
    receipts = await outcomes_of(lane_of(link), commit(audit=(NOTE,)), commit(BOB))
    assert [receipt.version for receipt in receipts] == [1, 1]
    assert link.tables.count_asked("FROM audit") == 2


async def test_a_call_is_turned_away_while_none_of_too_many_has_ended() -> None:
    link = ScriptedWriter(RefusedError(CROWDED, ""))
    with pytest.raises(OverloadedError, match="have not ended"):
        await lane_of(link).submit(submission(), 1)
    assert len(link.sent) == 1


@pytest.mark.parametrize(
    ("known", "oldest", "forgotten"),
    [("", "old", ["old"]), ("old", "old", ["old"]), ("old", "older", ["old", "older"])],
)
async def test_ended_calls_make_room_for_a_new_one(
    known: str, oldest: str, forgotten: list[str]
) -> None:
    link = ScriptedWriter(RefusedError(CROWDED, ""))
    link.tables.rows["FROM call_counts"] = oldest
    if known:
        link.tables.rows["WHERE actor = $1 AND method"] = {
            "call_id": known,
            "actor": str(ADA),
            "method": "m",
            "principal": "p",
            "key": "k",
            "request": digest_bytes(b""),
            "message_id": 1,
            "state": "completed",
            "created_ms": 1,
            "ended_ms": 2,
            "expires_ms": 3,
            "checksum": 0,
            "body": b"",
        }
    stored = await lane_of(link).submit(submission("k"), 1)
    assert (stored.call_id, stored.state) == ("new", "pending")
    assert link.sent[0][FORGOTTEN] == []
    assert link.sent[1][FORGOTTEN] == [(TENANT_DEFAULT, name) for name in forgotten]


# --- single writes ------------------------------------------------------------------------------

PAUSE = ChangePause(Fence(ADA.shard, EPOCH), StoredPause(ADA, "p", 5), is_pause=True)


async def test_a_pause_beyond_the_most_that_may_be_is_refused_at_once() -> None:
    link = ScriptedWriter(RefusedError(CROWDED, ""))
    with pytest.raises(OverloadedError, match="actors are paused; resume some before"):
        await lane_of(link).submit(PAUSE, 1)
    assert link.called == ["pause_actor_1"]


async def test_a_pause_whose_link_does_not_fit_its_chain_reads_the_chain_again() -> None:
    link = ScriptedWriter(RefusedError(REFUSED, ""), RefusedError(REFUSED, ""))
    lane = lane_of(link)
    assert await lane.submit(PAUSE, 1)
    assert link.called == ["pause_actor_1"] * 3
    assert link.tables.count_asked("FROM audit") == 3
    assert (await lane.head(ADA.shard, EPOCH)).sequence == 1


async def test_a_reminder_of_a_lost_shard_is_left_to_its_owner() -> None:
    link = ScriptedWriter(RefusedError(FENCED, ""), RefusedError(FENCED, ""))
    epochs = [{"shard": ADA.shard, "epoch": EPOCH + 1}]
    link.tables.rows["SELECT shard, epoch FROM shards"] = epochs
    reminder = ReminderRow(actor=ADA, name="wake", due_ms=5, body=b"")
    lane = lane_of(link)
    bury = BuryReminder(Fence(ADA.shard, EPOCH), reminder, 1, "x", 5)
    buried, paused = await outcomes_of(lane, bury, PAUSE)
    assert buried is None
    assert isinstance(paused, FencedError)
    assert link.called == ["bury_reminder_1", "pause_actor_1"]


async def test_only_a_dead_letter_that_is_there_comes_back_to_life() -> None:
    link = ScriptedWriter(0, 9)
    lane = lane_of(link)
    missing, revived = await outcomes_of(lane, *[ReviveMessage(TENANT_DEFAULT, 7, 5)] * 2)
    assert isinstance(missing, NotFoundError)
    assert revived == 9


async def test_the_held_state_ends_whether_or_not_the_store_was_held() -> None:
    link = ScriptedWriter(1, 0)
    assert await outcomes_of(lane_of(link), ReleaseStore(5), ReleaseStore(6)) == [None, None]
    assert link.called == ["release_store_1"] * 2
