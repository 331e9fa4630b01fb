"""Pages, cursors, work queues, streams and the audit chains."""

from __future__ import annotations

import pytest

from kelpie.core.errors import (
    ConflictError,
    CursorAheadError,
    FencedError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
)
from kelpie.core.ids import TENANT_DEFAULT, Tenant
from kelpie.core.limits import LIST_CURSOR_TTL_MS, STREAM_ROW_BYTES_MAX
from kelpie.storage.audit import verify_chain
from kelpie.storage.records import (
    AuditAppend,
    EventAppend,
    KvPut,
    ListDelete,
    ListPut,
    OutboxRow,
    Page,
    ReminderCursor,
    ReminderRow,
    ReplyRecord,
    StreamChunk,
)
from tests.contract.store.world import NOW_MS, Engine, Hand, actor_id, effect


def page(limit: int = 10, **fields: object) -> Page:
    return Page(tenant=TENANT_DEFAULT, limit=limit, **fields)  # type: ignore[arg-type]


async def test_a_range_of_keys_comes_in_order_from_either_end(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(kv=tuple(KvPut(key, key.encode()) for key in "dbca"))
        await Hand(store, "bob").turn(kv=(KvPut("b", b"another's"),))
        assert await store.kv_range(hand.actor, "b", "d", limit=9) == [("b", b"b"), ("c", b"c")]
        last = await store.kv_range(hand.actor, "a", "z", limit=1, descending=True)
        assert last == [("d", b"d")]


@pytest.mark.parametrize(
    ("cursor", "expected"),
    [
        ({}, "ab"),
        ({"after": "b"}, "cd"),
        ({"before": "e"}, "cd"),
        ({"after": "a", "before": "c"}, "b"),
        ({"descending": True}, "ed"),
        ({"descending": True, "after": "d"}, "cb"),
        ({"descending": True, "before": "a"}, "cb"),
    ],
)
async def test_a_list_is_paged_in_either_direction(
    engine: Engine, cursor: dict[str, object], expected: str
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        items = [("c", "2"), ("a", "1"), ("e", "3"), ("b", "1"), ("d", "2")]
        await hand.turn(lists=tuple(ListPut("c", item, key, b"") for item, key in items))
        found = await store.list_page("c", page(2, **cursor))
        assert "".join(item.item_id for item in found) == expected


async def test_a_removed_item_keeps_its_place_for_the_life_of_a_cursor(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(lists=tuple(ListPut("c", item, item, b"") for item in "abcd"))
        await hand.turn(lists=(ListDelete("c", "b"),))
        found = await store.list_page("c", page(after="b"))
        assert [item.item_id for item in found] == ["c", "d"]
        hand.now_ms += LIST_CURSOR_TTL_MS
        await hand.turn(lists=(ListDelete("c", "c"),))
        with pytest.raises(NotFoundError):
            await store.list_page("c", page(after="b"))
        assert [item.item_id for item in await store.list_page("c", page())] == ["a", "d"]


async def test_a_removed_item_may_come_back(engine: Engine) -> None:
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        await ada.turn(lists=(ListPut("c", "i", "1", b"old"),))
        await ada.turn(lists=(ListDelete("c", "i"),))
        await bob.turn(lists=(ListPut("c", "i", "2", b"new"),))
        (item,) = await store.list_page("c", page())
        assert (item.body, item.owner, item.sort_key) == (b"new", bob.actor, "2")


@pytest.mark.requirement("K-23", "STORE-TENANTS")
async def test_tenants_never_see_each_other(engine: Engine) -> None:
    async with engine.opened() as store:
        ours, theirs = Hand(store, "ada"), Hand(store, "ada", tenant="other")
        for hand in (ours, theirs):
            await hand.turn(
                state=hand.actor.tenant.encode(),
                lists=(ListPut("c", "i", "", hand.actor.tenant.encode()),),
                events=(EventAppend(hand.actor.tenant, b""),),
                effects=(effect(hand.actor),),
                audit=(AuditAppend(hand.actor.tenant, "p", b""),),
            )
        tenant = Tenant("other")
        (item,) = await store.list_page("c", Page(tenant=tenant, limit=9))
        assert item.owner == theirs.actor
        assert [e.kind for e in await store.events_tail(tenant, 0, 9)] == ["other"]
        assert [e.actor for e in await store.effects(Page(tenant=tenant, limit=9))] == [
            theirs.actor
        ]
        assert [r.kind async for r in store.audit(tenant)] == ["other"]


async def test_effects_are_found_by_state_actor_and_cursor(engine: Engine) -> None:
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        await ada.turn(effects=(effect(ada.actor, "e1"), effect(ada.actor, "e2", "done")))
        await bob.turn(effects=(effect(bob.actor, "e3", "approved"),))

        async def ids(cursor: Page, **filters: object) -> list[str]:
            return [e.effect_id for e in await store.effects(cursor, **filters)]  # type: ignore[arg-type]

        assert await ids(page()) == ["e1", "e2", "e3"]
        assert await ids(page(), states=("waiting", "approved")) == ["e1", "e3"]
        assert await ids(page(), actor=ada.actor) == ["e1", "e2"]
        assert await ids(page(1, after="e1")) == ["e2"]
        assert await ids(page(1, before="e3")) == ["e2"]
        assert await ids(page(descending=True), states=("done",), actor=ada.actor) == ["e2"]
        assert [e.effect_id for e in await store.effects_open("", 9)] == ["e1", "e3"]
        assert [e.effect_id for e in await store.effects_open("e1", 9)] == ["e3"]
        assert await store.effect(TENANT_DEFAULT, "e4") is None
        with pytest.raises(NotFoundError):
            await store.effects(page(after="e4"))


async def test_events_follow_a_cursor_without_gaps(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        for number in range(3):
            await hand.turn(events=(EventAppend("e", b"%d" % number),) * 2)
        events = await store.events(hand.actor, 1, 3)
        assert [event.sequence for event in events] == [2, 3, 4]
        assert await store.events(hand.actor, 6, 3) == []
        tail = await store.events_tail(TENANT_DEFAULT, events[-1].position, 9)
        assert [event.sequence for event in tail] == [5, 6]


async def test_the_newest_event_is_known_without_reading_any(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        assert await store.event_newest(hand.actor) is None
        await hand.turn(state=b"s")
        assert await store.event_newest(hand.actor) == 0
        assert await store.events(hand.actor, 0, 9) == []
        await hand.turn(events=(EventAppend("e", b""),) * 3)
        assert await store.event_newest(hand.actor) == 3
        await hand.turn(tombstone=True, events=(EventAppend("deleted", b""),))
        assert await store.event_newest(hand.actor) is None


async def test_a_cursor_from_the_future_is_refused(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(events=(EventAppend("e", b""),))
        with pytest.raises(CursorAheadError):
            await store.events(hand.actor, 2, 9)
        with pytest.raises(CursorAheadError):
            await store.events(actor_id("nobody"), 1, 9)
        with pytest.raises(CursorAheadError):
            await store.events_tail(TENANT_DEFAULT, 2**62, 9)


async def test_a_cursor_at_events_that_went_with_their_actor_is_still_a_cursor(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(events=(EventAppend("e", b""),))
        (event,) = await store.events_tail(TENANT_DEFAULT, 0, 9)
        await hand.delete()
        await Hand(store, "bob").turn(state=b"s")
        assert await store.events_tail(TENANT_DEFAULT, event.position, 9) == []


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_page_of_nothing_is_refused(engine: Engine, limit: int) -> None:
    async with engine.opened() as store:
        with pytest.raises(InvalidFieldError):
            await store.outbox(0, limit)
        with pytest.raises(LimitExceededError):
            await store.events_tail(TENANT_DEFAULT, 0, 1_000_000)


async def test_a_failed_delivery_counts_and_the_last_one_makes_a_dead_letter(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        hand, other = Hand(store), actor_id("bob", tenant="other")
        sent = await hand.turn(sends=(OutboxRow(sender=hand.actor, receiver=other, body=b"hi"),))
        (message_id,) = sent.message_ids
        await store.outbox_failed(message_id, error="busy", retry_at_ms=77, now_ms=NOW_MS)
        (message,) = await store.outbox(0, 9)
        assert (message.attempts, message.not_before_ms) == (1, 77)
        await store.outbox_failed(message_id, error="broken", retry_at_ms=None, now_ms=NOW_MS)
        assert await store.outbox(0, 9) == []
        (letter,) = await store.dead_letters(Tenant("other"), 9)
        assert (letter.attempts, letter.error, letter.body) == (2, "broken", b"hi")
        assert (letter.sender, letter.receiver, letter.at_ms) == (hand.actor, other, NOW_MS)
        await store.outbox_failed(message_id, error="late", retry_at_ms=None, now_ms=NOW_MS)
        assert len(await store.dead_letters(Tenant("other"), 9)) == 1


async def test_message_ids_are_never_used_again(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        send = OutboxRow(sender=hand.actor, receiver=hand.actor, body=b"")
        first = await hand.turn(sends=(send,))
        await hand.turn(consumes=first.message_ids[0])
    async with engine.opened() as store:
        hand.store = store
        second = await hand.turn(sends=(send,))
        assert second.message_ids > first.message_ids


async def test_due_reminders_come_earliest_first(engine: Engine) -> None:
    async with engine.opened() as store:
        for key, due_ms in (("ada", 30), ("bob", 10), ("eve", 20)):
            hand = Hand(store, key)
            reminder = ReminderRow(actor=hand.actor, name="wake", due_ms=due_ms, body=b"up")
            await hand.turn(reminders=(reminder,))
        assert [row.actor.key for row in await store.reminders_due(25, 9)] == ["bob", "eve"]
        assert len(await store.reminders_due(99, 2)) == 2
        assert await store.reminder_next_ms() == 10


async def test_due_reminders_are_read_by_cursor(engine: Engine) -> None:
    async with engine.opened() as store:
        for key in ("bob", "ada"):
            hand = Hand(store, key)
            rows = [
                ReminderRow(actor=hand.actor, name=name, due_ms=due_ms, body=b"up")
                for name, due_ms in (("x", 10), ("w", 10), ("late", 20))
            ]
            await hand.turn(reminders=tuple(rows))
        first = await store.reminders_due(20, 3)
        assert [(row.actor.key, row.name) for row in first] == [
            ("ada", "w"),
            ("ada", "x"),
            ("bob", "w"),
        ]
        after = ReminderCursor(first[-1].due_ms, str(first[-1].actor), first[-1].name)
        rest = await store.reminders_due(20, 9, after=after)
        assert [(row.actor.key, row.name) for row in rest] == [
            ("bob", "x"),
            ("ada", "late"),
            ("bob", "late"),
        ]
        assert await store.reminder_next_ms(after_ms=10) == 20
        assert await store.reminder_next_ms(after_ms=20) is None


@pytest.mark.requirement("ACTOR-REMINDERS-DEAD-LETTER")
async def test_a_buried_reminder_is_a_dead_letter_of_its_actor(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store, "ada")
        row = ReminderRow(actor=hand.actor, name="wake", due_ms=5, body=b"up")
        await hand.turn(reminders=(row,))
        moved = ReminderRow(actor=hand.actor, name="wake", due_ms=6, body=b"up")
        await store.bury_reminder(moved, attempts=5, error="broken", now_ms=NOW_MS)
        assert await store.reminders_due(9, 9) == [row], "one that was moved lives on"
        for _ in range(2):
            await store.bury_reminder(row, attempts=5, error="broken", now_ms=NOW_MS)
        (letter,) = await store.dead_letters(hand.actor.tenant, 9)
        assert (letter.sender, letter.receiver, letter.body) == (hand.actor, hand.actor, b"up")
        assert (letter.attempts, letter.error) == (5, "broken")
        assert await store.reminders_due(9, 9) == []
        message_id = await store.replay_dead_letter(hand.actor.tenant, letter.message_id)
        assert [each.message_id for each in await store.outbox(0, 9)] == [message_id]


def chunks(*sequences: int, attempt: int = 1, body: bytes = b"delta") -> list[StreamChunk]:
    return [StreamChunk("effect-1", attempt, number, "text", body) for number in sequences]


async def test_a_stream_keeps_each_attempt_apart(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn()
        epoch = hand.prepare().epoch
        await store.stream_append(hand.actor, epoch, chunks(1, 2))
        await store.stream_append(hand.actor, epoch, [*chunks(3), *chunks(1, attempt=2)])
        assert await store.stream(hand.actor, "effect-1", 1, 1, 9) == chunks(2, 3)
        assert await store.stream(hand.actor, "effect-1", 2, 0, 9) == chunks(1, attempt=2)


async def test_a_stream_refuses_what_does_not_follow(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        epoch = hand.prepare().epoch
        with pytest.raises(NotFoundError):
            await store.stream_append(hand.actor, epoch, chunks(1))
        await hand.turn()
        await store.stream_append(hand.actor, epoch, chunks(1, 2))
        with pytest.raises(ConflictError):
            await store.stream_append(hand.actor, epoch, chunks(3, 3))
        with pytest.raises(ConflictError):
            await store.stream_append(hand.actor, epoch, chunks(2))
        with pytest.raises(FencedError):
            await store.stream_append(hand.actor, epoch - 1, chunks(3))
        body = bytes(STREAM_ROW_BYTES_MAX)
        with pytest.raises(LimitExceededError):
            await store.stream_append(hand.actor, epoch, chunks(3, body=body + b"x"))
        with pytest.raises(LimitExceededError):
            await store.stream_append(hand.actor, epoch, chunks(*range(3, 203), body=body))
        with pytest.raises(LimitExceededError):
            await store.stream_append(hand.actor, epoch, chunks(*range(3, 10_004)))
        assert await store.stream(hand.actor, "effect-1", 1, 0, 9) == chunks(1, 2)


@pytest.mark.requirement("AUDIT-CHAIN")
async def test_each_shards_audit_chain_verifies_across_batches_and_restarts(
    engine: Engine,
) -> None:
    count = 700
    async with engine.opened() as store:
        hand = Hand(store)
        for _ in range(2):
            await hand.turn(audit=(AuditAppend("approved", "p", b"{}"),) * (count // 2))
    async with engine.opened() as store:
        hand.store = store
        await hand.turn(audit=(AuditAppend("started", "p", b"{}"),))
        shard = hand.actor.shard
        records = [record async for record in store.audit_chain(shard)]
        assert verify_chain(records, shard=shard).sequence == count + 1
        assert [record async for record in store.audit(hand.actor.tenant)] == records
        assert [record async for record in store.audit_chain((shard + 1) % 256)] == []


async def test_expired_replies_are_removed_as_new_ones_come(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        for number in range(4):
            digest = "sha256:" + "0" * 64
            await hand.turn(reply=ReplyRecord("m", f"k{number}", digest, b"", hand.now_ms + 1))  # type: ignore[arg-type]
            hand.now_ms += 2
        engine.clock.wall_ms = NOW_MS
        # With the clock set back, an expired reply would show if its row were still there.
        assert await store.reply(hand.actor, "m", "k0") is None
        assert await store.reply(hand.actor, "m", "k3") is not None


async def test_stats_count_what_is_there(engine: Engine) -> None:
    async with engine.opened() as store:
        hand, gone = Hand(store, "ada"), Hand(store, "bob")
        await hand.turn(
            effects=(effect(hand.actor), effect(hand.actor, "e2", "done")),
            sends=(OutboxRow(sender=hand.actor, receiver=gone.actor, body=b""),),
            reminders=(ReminderRow(actor=hand.actor, name="r", due_ms=1, body=b""),),
            events=(EventAppend("e", b""),) * 3,
        )
        await gone.turn()
        await gone.delete()
        stats = await store.stats()
        assert (stats.actors, stats.effects_open, stats.outbox) == (1, 1, 1)
        assert (stats.reminders, stats.events, stats.dead_letters) == (1, 3, 0)
        assert stats.size_bytes > 0
        assert not stats.held
        assert not store.held


async def test_living_actors_of_a_type_are_listed_by_key_within_their_tenant(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        for key in "bac":
            await Hand(store, key).turn(state=b"x")
        await Hand(store, "a", tenant="other").turn(state=b"x")
        await Hand(store, "deleted").turn(tombstone=True)
        kind, tenant = actor_id("a").type, actor_id("a").tenant
        rows = await store.actors(tenant, kind, after="", limit=2)
        assert [row.actor for row in rows] == [actor_id("a"), actor_id("b")]
        assert {(row.version, row.incarnation) for row in rows} == {(1, 1)}
        rest = await store.actors(tenant, kind, after="b", limit=9)
        assert [row.actor.key for row in rest] == ["c"]
        assert await store.actors(tenant, kind[:-1], after="", limit=9) == []
