"""A deleted actor's rows are gone at once for every reader, and in slices from the disk."""

from __future__ import annotations

import asyncio

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import CursorExpiredError, NotFoundError, VersionConflictError
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.core.limits import PURGE_SLICE_ROWS
from kelpie.storage.records import (
    AuditAppend,
    EventAppend,
    KvPut,
    ListPut,
    OutboxRow,
    Page,
    ReminderRow,
    ReplyRecord,
    StreamChunk,
)
from tests.contract.store.world import NOW_MS, Engine, Hand, effect

MANY = 3 * PURGE_SLICE_ROWS


async def furnish(hand: Hand) -> None:
    """Give an actor more rows of every sort than one slice removes."""
    await hand.turn(
        state=b"state",
        kv=tuple(KvPut(f"k{number:03}", b"v") for number in range(MANY)),
        effects=(effect(hand.actor),),
        sends=(OutboxRow(sender=hand.actor, receiver=hand.actor, body=b"still mine"),),
        reminders=(ReminderRow(actor=hand.actor, name="wake", due_ms=1, body=b""),),
        events=tuple(EventAppend("e", b"") for _ in range(MANY)),
        lists=tuple(ListPut("c", f"i{number:03}", "", b"x") for number in range(MANY)),
        audit=(AuditAppend("created", "p", b""),),
        reply=ReplyRecord("m", "key", digest_bytes(b""), b"r", NOW_MS + 9),
    )
    chunk = StreamChunk("effect-1", 1, 1, "text", b"delta")
    await hand.store.stream_append(hand.actor, hand.prepare().epoch, [chunk])


async def assert_nothing_shows(hand: Hand) -> None:
    store, actor = hand.store, hand.actor
    assert await store.kv_range(actor, "", "z", limit=9) == []
    assert await store.kv_get(actor, "k000") is None
    assert await store.effects_open("", 9) == []
    assert await store.effect(TENANT_DEFAULT, "effect-1") is None
    assert await store.reminders_due(NOW_MS, 9) == []
    assert await store.reminder_next_ms() is None
    assert await store.list_page("c", Page(tenant=TENANT_DEFAULT, limit=9)) == []
    assert await store.reply(actor, "m", "key") is None
    assert await store.stream(actor, "effect-1", 1, 0, 9) == []


async def test_a_deleted_actors_rows_vanish_with_the_commit(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await furnish(hand)
        await hand.turn(tombstone=True, events=(EventAppend("deleted", b""),))
        await assert_nothing_shows(hand)
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert loaded.tombstoned
        assert (loaded.version, loaded.state, loaded.effects) == (0, b"", ())
        events = await store.events(hand.actor, 0, 9)
        assert [event.kind for event in events] == ["deleted"]
        assert [e.kind for e in await store.events_tail(TENANT_DEFAULT, 0, 999)] == ["deleted"]
        with pytest.raises(CursorExpiredError):
            await store.events(hand.actor, 3, 9)
        # What it had promised to others, and what was written down about it, stays.
        assert len(await store.outbox(0, 9)) == 1
        assert [record.kind async for record in store.audit(TENANT_DEFAULT)] == ["created"]


async def test_the_next_incarnation_sees_nothing_of_the_last(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await furnish(hand)
        await hand.turn(tombstone=True)
        with pytest.raises(VersionConflictError):
            await store.commit(hand.prepare(state=b"late turn"))
        with pytest.raises(VersionConflictError):
            await store.commit(hand.prepare(expected_version=0))
        hand.version, hand.incarnation = 0, 2
        await hand.turn(kv=(KvPut("mine", b""),), events=(EventAppend("born", b""),))
        assert await store.kv_range(hand.actor, "", "z", limit=9) == [("mine", b"")]
        events = await store.events(hand.actor, 0, 9)
        assert [(event.sequence, event.kind) for event in events] == [(MANY + 1, "born")]
        assert await store.effects_open("", 9) == []


async def test_rows_leave_the_disk_in_slices_even_across_a_restart(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await furnish(hand)
        await hand.turn(tombstone=True)
    async with engine.opened() as store:
        for _ in range(200):
            if (await store.stats()).events == 0:
                break
            await asyncio.sleep(0)
        stats = await store.stats()
        assert (stats.events, stats.reminders, stats.effects_open) == (0, 0, 0)
        hand.store = store
        await assert_nothing_shows(hand)


async def test_a_deleted_actors_list_items_are_free_for_others(engine: Engine) -> None:
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        await furnish(ada)
        await ada.turn(tombstone=True)
        await bob.turn(lists=(ListPut("c", "i000", "", b"bob's"),))
        item = await store.list_item(TENANT_DEFAULT, "c", "i000")
        assert item is not None
        assert item.owner == bob.actor


async def test_a_stream_of_a_deleted_actor_is_refused(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn()
        await hand.turn(tombstone=True)
        chunk = StreamChunk("effect-1", 1, 1, "text", b"")
        with pytest.raises(NotFoundError):
            await store.stream_append(hand.actor, hand.prepare().epoch, [chunk])
