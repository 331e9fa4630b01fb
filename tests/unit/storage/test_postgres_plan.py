"""How members share a batch: what is put together, and what has to wait for the next one."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.storage.audit import GENESIS, AuditHead, verify_chain
from kelpie.storage.postgres.opening import show_place
from kelpie.storage.postgres.plan import (
    ORDINAL_BITS,
    ROWS_MAX,
    Append,
    BatchAnswer,
    BatchPlan,
    Submit,
    message_id_of,
)
from kelpie.storage.postgres.texts import decode_text, encode_text
from kelpie.storage.records import (
    AuditAppend,
    AuditRecord,
    Commit,
    EffectRow,
    EventAppend,
    KvDelete,
    KvPut,
    ListDelete,
    ListPut,
    OutboxRow,
    ReminderRow,
    ReplyRecord,
    StreamChunk,
    Submission,
)

ADA = ActorId(TENANT_DEFAULT, "agent", "ada")
BOB = ActorId(TENANT_DEFAULT, "agent", "bob")
# Places of arrays among the arguments.
FENCES, CREATED, CHANGED = 6, 7, 8
KV, KV_GONE, LISTS, LISTS_GONE, EVENTS, SENDS, AUDIT = 14, 15, 17, 18, 20, 22, 23


def commit(actor: ActorId = ADA, version: int = 0, **changes: Any) -> Commit:
    fields: dict[str, Any] = {
        "actor": actor,
        "shard": actor.shard,
        "epoch": 3,
        "incarnation": 1,
        "expected_version": version,
        "schema_version": 1,
        "now_ms": 5,
    }
    return Commit(**(fields | changes))


def submission(actor: ActorId = BOB, key: str = "", epoch: int = 3) -> Submit:
    call = Submission(
        call_id="c",
        actor=actor,
        method="m",
        sender=ADA,
        principal="p",
        key=key,
        request=digest_bytes(b""),
        body=b"",
        now_ms=7,
    )
    return Submit(call, epoch)


def planned(*members: Any, heads: dict[int, AuditHead] | None = None) -> BatchPlan:
    plan = BatchPlan(heads)
    assert [plan.take(member) for member in members] == [True] * len(members)
    return plan


def test_turns_of_one_actor_become_one_row_at_its_last_version() -> None:
    plan = planned(
        commit(state=b"a"), commit(version=1), commit(version=2, state=b"c"), commit(version=3)
    )
    arguments = plan.arguments()
    assert arguments[FENCES] == [(ADA.shard, 3)]
    assert arguments[CHANGED] == []
    (row,) = arguments[CREATED]
    assert row[:8] == (TENANT_DEFAULT, str(ADA), ADA.shard, 3, 1, 0, 4, 1)
    assert row[-3:-2] == (True,)
    assert row[-1] == b"c"
    assert [receipt.version for receipt in plan.settle(BatchAnswer(1, []))] == [1, 2, 3, 4]


def test_a_turn_without_a_state_leaves_it_as_it_is() -> None:
    (row,) = planned(commit(version=4)).arguments()[CHANGED]
    assert row[5:7] == (4, 5)
    assert row[-3] is False


def test_the_last_write_of_a_key_counts() -> None:
    writes = (KvPut("k", b"1"), KvDelete("k"), KvPut("k", b"2"), KvPut("g", b""), KvDelete("g"))
    arguments = planned(commit(kv=writes)).arguments()
    assert [row[3:4] + row[-1:] for row in arguments[KV]] == [("k", b"2")]
    assert arguments[KV_GONE] == [(str(ADA), 1, "g")]


def test_an_item_that_was_put_and_removed_leaves_its_place() -> None:
    items = (ListPut("c", "i", "s", b"x"), ListDelete("c", "i"), ListDelete("c", "other"))
    arguments = planned(commit(lists=items)).arguments()
    (left,) = arguments[LISTS]
    assert left[2:5] + left[9:] == ("i", "s", str(ADA), 5, 0, b"")
    assert arguments[LISTS_GONE] == [(TENANT_DEFAULT, "c", "other", str(ADA), 5)]


def test_an_item_that_is_removed_again_keeps_the_time_of_its_first_removal() -> None:
    gone, other = ListDelete("c", "i"), ListDelete("c", "other")
    plan = planned(
        commit(lists=(ListPut("c", "i", "s", b"x"), gone, other)),
        commit(version=1, now_ms=6, lists=(gone, other)),
    )
    (left,) = plan.arguments()[LISTS]
    assert left[9] == 5
    assert plan.arguments()[LISTS_GONE] == [(TENANT_DEFAULT, "c", "other", str(ADA), 5)]


def test_events_are_numbered_from_the_newest_of_their_actor() -> None:
    events = (EventAppend("e", b""),) * 2
    plan = planned(
        commit(events=events), commit(BOB, events=events), commit(version=1, events=events)
    )
    behind = [row[2] for row in plan.arguments()[EVENTS]]
    assert behind == [3, 2, 1, 0, 1, 0]
    receipts = plan.settle(BatchAnswer(9, [14, 2]))
    assert [receipt.first_event_sequence for receipt in receipts] == [11, 1, 13]


def test_messages_of_commits_and_calls_are_numbered_through_the_batch() -> None:
    send = OutboxRow(sender=ADA, receiver=BOB, body=b"")
    plan = planned(commit(sends=(send,) * 2), submission(), commit(version=1, sends=(send,)))
    first, stored, last = plan.settle(BatchAnswer(5, []))
    base = 5 << ORDINAL_BITS
    assert first.message_ids == (base + 1, base + 2)
    assert stored.message_id == base + 3
    assert last.message_ids == (base + 4,)
    assert [row[3] for row in plan.arguments()[SENDS]] == [BOB.shard] * 4
    with pytest.raises(AssertionError, match="ordinals"):
        message_id_of(1, 1 << ORDINAL_BITS)


def test_links_follow_the_head_that_was_known_across_actors() -> None:
    note = AuditAppend("k", "p", b"")
    shard = ADA.shard
    plan = planned(
        commit(audit=(note,)),
        commit(version=1, audit=(note, note)),
        heads={shard: AuditHead(shard, 0, GENESIS)},
    )
    rows = plan.arguments()[AUDIT]
    records = [AuditRecord(r[0], r[1], r[4], ADA, *r[6:]) for r in rows]
    assert verify_chain(records, shard=shard) == plan.heads[shard]
    assert plan.heads[shard].sequence == 3


def effect(actor: ActorId) -> EffectRow:
    return EffectRow(
        effect_id="e",
        actor=actor,
        kind="k",
        state="waiting",
        digest=None,
        attempt=1,
        session="",
        due_ms=0,
        created_ms=1,
        updated_ms=1,
        body=b"",
    )


REPLY = ReplyRecord("m", "k", digest_bytes(b""), b"", 9)
WAKE = ReminderRow(actor=ADA, name="wake", due_ms=5, body=b"")
FULL = commit(BOB, events=(EventAppend("e", b""),) * ROWS_MAX)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (commit(), commit(version=2)),
        (commit(), commit(version=1, incarnation=2)),
        (commit(), commit(version=1, epoch=4)),
        (commit(tombstone=True), commit(incarnation=2)),
        (commit(version=1, consumes=7), commit(version=2, consumes=7)),
        (commit(version=1, reminders=(WAKE,)), commit(version=2, fired=("wake", 5))),
        (commit(reply=REPLY), commit(version=1, reply=REPLY)),
        (commit(effects=(effect(ADA),)), commit(BOB, effects=(effect(BOB),))),
        (
            commit(lists=(ListPut("c", "i", "", b""),)),
            commit(BOB, lists=(ListPut("c", "i", "", b""),)),
        ),
        (
            commit(sends=(OutboxRow(sender=ADA, receiver=BOB, body=b""),)),
            commit(BOB, events=(EventAppend("e", b""),) * ROWS_MAX),
        ),
        (
            Append(ADA, 3, (StreamChunk("e", 1, 2, "t", b""),)),
            Append(ADA, 3, (StreamChunk("e", 1, 2, "t", b""),)),
        ),
        (commit(), Append(ADA, 4, (StreamChunk("e", 1, 1, "t", b""),))),
        (FULL, Append(ADA, 3, (StreamChunk("e", 1, 1, "t", b""),))),
        (commit(), submission(ADA, epoch=4)),
        (submission(key="k"), submission(key="k")),
        (FULL, submission(ADA)),
    ],
)
def test_what_cannot_share_a_batch_is_left_for_the_next(earlier: Any, later: Any) -> None:
    plan = planned(earlier)
    before = plan.arguments()
    assert not plan.take(later)
    assert plan.arguments() == before
    assert len(plan.outcomes) == 1
    assert BatchPlan().take(later), "alone it has a plan"


def test_chunks_that_do_not_ascend_stand_alone_and_are_known_to_be_refused() -> None:
    chunks = (StreamChunk("e", 1, 3, "t", b""), StreamChunk("e", 1, 2, "t", b""))
    assert not planned(commit()).take(Append(ADA, 3, chunks))
    alone = planned(Append(ADA, 3, chunks))
    assert alone.is_broken
    assert not alone.take(commit())


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://eve:s3cret@host:5432/db?sslmode=require", "postgresql://eve@host:5432/db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://eve:s3@cret@host/db", "postgresql://eve@host/db"),
    ],
)
def test_an_address_is_shown_without_its_password(dsn: str, shown: str) -> None:
    assert show_place(dsn) == shown


@pytest.mark.parametrize("text", ["", "plain", "\0", "a\1b\0", "\1\2", "\0\1\2"])
def test_every_text_comes_back_from_its_stored_form(text: str) -> None:
    stored = encode_text(text)
    assert "\0" not in stored
    assert decode_text(stored) == text
