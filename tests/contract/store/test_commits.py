"""What a commit keeps, and what refuses it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    ConflictError,
    FencedError,
    InvalidFieldError,
    KelpieError,
    KeyReusedError,
    LimitExceededError,
    MessageGoneError,
    VersionConflictError,
)
from kelpie.core.limits import (
    ACTOR_STATE_BYTES_MAX,
    EVENT_BYTES_MAX,
    INTEGER_MAX,
    KV_KEY_BYTES_MAX,
    KV_VALUE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    REMINDER_NAME_CHARS_MAX,
    STATE_CHUNK_BYTES,
    TRANSACTION_OPERATIONS_MAX,
)
from kelpie.storage.records import (
    AuditAppend,
    EventAppend,
    KvDelete,
    KvPut,
    ListDelete,
    ListPut,
    OutboxRow,
    ReminderDelete,
    ReminderRow,
    ReplyRecord,
)
from tests.contract.store.world import NOW_MS, Engine, Hand, actor_id, effect

if TYPE_CHECKING:
    from collections.abc import Callable


async def test_an_actor_that_never_existed_loads_as_none(engine: Engine) -> None:
    async with engine.opened() as store:
        assert await store.load(actor_id("nobody")) is None


@pytest.mark.requirement("K-11", "STORE-ATOMIC")
async def test_a_commit_keeps_everything_it_carries(engine: Engine) -> None:
    async with engine.opened() as store:
        hand, other = Hand(store), actor_id("bob")
        row = effect(hand.actor)
        receipt = await hand.turn(
            state=b"state",
            kv=(KvPut("k", b"v"), KvPut("gone", b""), KvDelete("gone")),
            effects=(row,),
            sends=(OutboxRow(sender=hand.actor, receiver=other, body=b"hi", not_before_ms=7),) * 2,
            reminders=(
                ReminderRow(actor=hand.actor, name="wake", due_ms=9, body=b"up"),
                ReminderRow(actor=hand.actor, name="drop", due_ms=1, body=b""),
                ReminderDelete("drop"),
            ),
            events=(EventAppend("started", b"1"), EventAppend("ended", b"2")),
            lists=(
                ListPut("agents", "a", "1", b"A"),
                ListPut("agents", "b", "2", b"B"),
                ListDelete("agents", "b"),
            ),
            audit=(AuditAppend("approved", "person:eve", b"{}"),),
            reply=ReplyRecord("send", "key", digest_bytes(b"q"), b"answer", NOW_MS + 1),
        )

        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert (loaded.version, loaded.state, loaded.incarnation) == (1, b"state", 1)
        assert (loaded.effects, loaded.event_sequence, loaded.tombstoned) == ((row,), 2, False)
        assert await store.kv_get(hand.actor, "k") == b"v"
        assert await store.kv_get(hand.actor, "gone") is None
        messages = await store.outbox(0, 10)
        assert tuple(message.message_id for message in messages) == receipt.message_ids
        assert [(m.sender, m.receiver, m.body, m.attempts) for m in messages] == [
            (hand.actor, other, b"hi", 0)
        ] * 2
        assert [row.name for row in await store.reminders_due(9, 10)] == ["wake"]
        assert await store.reminder_next_ms() == 9
        assert receipt.first_event_sequence == 1
        events = await store.events(hand.actor, 0, 10)
        assert [(e.sequence, e.kind, e.body, e.at_ms) for e in events] == [
            (1, "started", b"1", NOW_MS),
            (2, "ended", b"2", NOW_MS),
        ]
        item = await store.list_item(hand.actor.tenant, "agents", "a")
        assert item is not None
        assert (item.body, item.owner) == (b"A", hand.actor)
        assert await store.list_item(hand.actor.tenant, "agents", "b") is None
        assert [r.principal async for r in store.audit(hand.actor.tenant)] == ["person:eve"]
        reply = await store.reply(hand.actor, "send", "key")
        assert reply == (digest_bytes(b"q"), b"answer", NOW_MS + 1)


async def test_a_commit_survives_a_restart(engine: Engine) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=b"kept")
    async with engine.opened() as store:
        loaded = await store.load(actor_id("ada"))
        assert loaded is not None
        assert loaded.state == b"kept"


async def test_a_turn_that_leaves_the_state_keeps_it_and_its_schema(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"kept", schema_version=3)
        await hand.turn(schema_version=4, events=(EventAppend("noted", b""),))
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert (loaded.state, loaded.schema_version, loaded.version) == (b"kept", 3, 2)


@pytest.mark.parametrize("size", [STATE_CHUNK_BYTES, STATE_CHUNK_BYTES + 1, ACTOR_STATE_BYTES_MAX])
async def test_large_states_come_back_whole_and_shrink_again(engine: Engine, size: int) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        state = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        for expected in (state, state[:-1], b"small"):
            await hand.turn(state=expected)
            loaded = await store.load(hand.actor)
            assert loaded is not None
            assert loaded.state == expected


async def test_a_new_actor_without_a_state_loads_with_an_empty_one(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn()
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert (loaded.state, loaded.version) == (b"", 1)


@pytest.mark.requirement("STORE-ATOMIC")
@pytest.mark.parametrize(
    "changes",
    [{"expected_version": 0}, {"expected_version": 2}, {"incarnation": 2}],
    ids=["behind", "ahead", "other incarnation"],
)
async def test_another_version_is_refused_and_changes_nothing(
    engine: Engine, changes: dict[str, int]
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"one")
        with pytest.raises(VersionConflictError):
            await store.commit(hand.prepare(state=b"two", kv=(KvPut("k", b""),), **changes))
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert (loaded.state, loaded.version) == (b"one", 1)
        assert await store.kv_get(hand.actor, "k") is None


async def test_a_first_commit_that_expects_a_past_is_refused(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        with pytest.raises(VersionConflictError):
            await store.commit(hand.prepare(expected_version=3))


@pytest.mark.requirement("K-13", "STORE-FENCED")
async def test_an_earlier_owners_commit_is_fenced(engine: Engine) -> None:
    async with engine.opened() as store:
        stale = Hand(store).prepare(state=b"zombie")
    async with engine.opened() as store:
        with pytest.raises(FencedError):
            await store.commit(stale)
        with pytest.raises(FencedError):
            await store.commit(Hand(store).prepare(epoch=stale.epoch + 100))
        assert await store.load(stale.actor) is None


@pytest.mark.requirement("K-17")
async def test_every_opening_raises_every_epoch_and_makes_a_new_session(engine: Engine) -> None:
    async with engine.opened() as store:
        first, session = store.grants(), store.session
    async with engine.opened() as store:
        assert store.session != session
        assert len(store.grants()) == len(first)
        pairs = zip(first, store.grants(), strict=True)
        assert all(new.epoch > old.epoch and new.shard == old.shard for old, new in pairs)


async def test_a_refusal_fails_only_later_turns_of_its_own_actor(engine: Engine) -> None:
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        commits = [
            ada.prepare(state=b"a1"),
            ada.prepare(state=b"a2", expected_version=1, consumes=404),
            bob.prepare(state=b"b1"),
            ada.prepare(state=b"a3", expected_version=2),
            bob.prepare(state=b"b2", expected_version=1),
        ]
        outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
        kinds = [type(o) if isinstance(o, KelpieError) else o.version for o in outcomes]  # type: ignore[union-attr]
        assert kinds == [1, MessageGoneError, 1, VersionConflictError, 2]
        loaded = await store.load(ada.actor)
        assert loaded is not None
        assert loaded.state == b"a1"


@pytest.mark.requirement("ACTOR-MESSAGE-ONCE")
async def test_a_message_is_consumed_once(engine: Engine) -> None:
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        sent = await ada.turn(sends=(OutboxRow(sender=ada.actor, receiver=bob.actor, body=b""),))
        with pytest.raises(MessageGoneError):
            await store.commit(ada.prepare(consumes=sent.message_ids[0]))
        await bob.turn(consumes=sent.message_ids[0])
        assert await store.outbox(0, 10) == []
        with pytest.raises(MessageGoneError):
            await store.commit(bob.prepare(consumes=sent.message_ids[0]))


@pytest.mark.requirement("ACTOR-REMINDER-SURVIVES")
async def test_a_reminder_fires_once_and_a_moved_one_not_at_its_old_time(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        reminder = ReminderRow(actor=hand.actor, name="wake", due_ms=5, body=b"")
        await hand.turn(reminders=(reminder,))
        with pytest.raises(MessageGoneError):
            await store.commit(hand.prepare(fired=("wake", 4)))
        again = ReminderRow(actor=hand.actor, name="wake", due_ms=8, body=b"next")
        await hand.turn(fired=("wake", 5), reminders=(again,))
        assert await store.reminders_due(7, 10) == []
        await hand.turn(fired=("wake", 8))
        assert await store.reminder_next_ms() is None


@pytest.mark.requirement("ACTOR-IDEMPOTENCY-KEY", "K-12")
async def test_a_living_idempotency_key_is_refused_and_an_expired_one_is_replaced(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        first = ReplyRecord("send", "key", digest_bytes(b"1"), b"one", NOW_MS + 10)
        await hand.turn(reply=first)
        second = first._replace(reply=b"two", expires_ms=NOW_MS + 99)
        for request in (b"1", b"2"):
            again = second._replace(request=digest_bytes(request))
            with pytest.raises(KeyReusedError):
                await store.commit(hand.prepare(reply=again))
        engine.clock.wall_ms += 10
        hand.now_ms += 10
        assert await store.reply(hand.actor, "send", "key") is None
        await hand.turn(reply=second)
        reply = await store.reply(hand.actor, "send", "key")
        assert reply is not None
        assert reply.reply == b"two"


async def test_effects_and_list_items_of_another_actor_are_refused(engine: Engine) -> None:
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        await ada.turn(effects=(effect(ada.actor),), lists=(ListPut("c", "i", "", b"ada"),))
        with pytest.raises(ConflictError):
            await store.commit(bob.prepare(effects=(effect(bob.actor),)))
        with pytest.raises(ConflictError):
            await store.commit(bob.prepare(lists=(ListPut("c", "i", "", b"bob"),)))
        await bob.turn(lists=(ListDelete("c", "i"),))
        item = await store.list_item(ada.actor.tenant, "c", "i")
        assert item is not None
        assert item.body == b"ada"


async def test_an_effects_transition_replaces_its_row(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(effects=(effect(hand.actor),))
        done = effect(hand.actor, state="done")
        await hand.turn(effects=(done,))
        assert await store.effect(hand.actor.tenant, "effect-1") == done
        assert await store.effects_open("", 10) == []
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert loaded.effects == ()


def long_send(hand: Hand) -> dict[str, object]:
    body = bytes(MESSAGE_BYTES_MAX + 1)
    return {"sends": (OutboxRow(sender=hand.actor, receiver=hand.actor, body=body),)}


def long_reminder(hand: Hand) -> dict[str, object]:
    name = "n" * (REMINDER_NAME_CHARS_MAX + 1)
    return {"reminders": (ReminderRow(actor=hand.actor, name=name, due_ms=1, body=b""),)}


LIMITS: dict[str, Callable[[Hand], dict[str, object]]] = {
    "state": lambda _: {"state": bytes(ACTOR_STATE_BYTES_MAX + 1)},
    "kv.key": lambda _: {"kv": (KvPut("k" * (KV_KEY_BYTES_MAX + 1), b""),)},
    "kv.value": lambda _: {"kv": (KvPut("k", bytes(KV_VALUE_BYTES_MAX + 1)),)},
    "event.body": lambda _: {"events": (EventAppend("e", bytes(EVENT_BYTES_MAX + 1)),)},
    "send.body": long_send,
    "reminder.name": long_reminder,
    "reply.key": lambda _: {"reply": ReplyRecord("m", "k" * 256, digest_bytes(b""), b"", 1)},
    "transaction": lambda _: {
        "state": bytes(ACTOR_STATE_BYTES_MAX),
        "kv": (KvPut("k", bytes(1024 * 1024)),),
    },
}


@pytest.mark.parametrize("field", LIMITS)
async def test_a_value_beyond_its_limit_is_refused_by_name(engine: Engine, field: str) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        with pytest.raises(LimitExceededError) as caught:
            await store.commit(hand.prepare(**LIMITS[field](hand)))
        assert caught.value.fields["field"] == field
        assert await store.load(hand.actor) is None


@pytest.mark.requirement("K-26")
async def test_a_commit_of_too_many_operations_is_refused(engine: Engine) -> None:
    async with engine.opened() as store:
        writes = (KvDelete("k"),) * TRANSACTION_OPERATIONS_MAX
        with pytest.raises(LimitExceededError) as caught:
            await store.commit(Hand(store).prepare(kv=writes))
        assert caught.value.fields["unit"] == "operations"


async def test_what_cannot_be_stored_is_refused_before_it_is_queued(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        with pytest.raises(InvalidFieldError):
            await store.commit(hand.prepare(kv=(KvPut("\ud800", b""),)))
        with pytest.raises(InvalidFieldError):
            await store.commit(hand.prepare(now_ms=INTEGER_MAX + 1))
        await hand.turn(kv=(KvPut("größe\0", b"kept"),))
        assert await store.kv_get(hand.actor, "größe\0") == b"kept"


async def test_a_cancelled_wait_does_not_take_the_commit_back(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        waiting = asyncio.ensure_future(store.commit(hand.prepare(state=b"kept")))
        waiting.cancel()
        hand.version = 1
        await hand.turn()
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert loaded.state == b"kept"
