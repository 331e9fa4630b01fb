"""A submitted call is kept with its message, ends once, and is forgotten when its time is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    FencedError,
    KeyReusedError,
    LimitExceededError,
    MessageGoneError,
    NotFoundError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId, Tenant
from kelpie.core.limits import IDEMPOTENCY_KEY_BYTES_MAX
from kelpie.storage.records import CallEnd, CallState, Page, StoredCall, Submission
from tests.contract.store.world import NOW_MS, Engine, Hand, actor_id

if TYPE_CHECKING:
    from kelpie.storage.protocol import Store

TTL_MS = 1_000
CALLER = ActorId(TENANT_DEFAULT, "kelpie.caller", "p:local")


def submission(number: int = 1, *, actor: ActorId | None = None, **changes: Any) -> Submission:
    fields: dict[str, Any] = {
        "call_id": f"call-{number}",
        "actor": actor or actor_id("ada"),
        "method": "add",
        "sender": CALLER,
        "principal": "local",
        "key": "",
        "request": digest_bytes(b"one"),
        "body": b"one",
        "now_ms": NOW_MS,
    }
    return Submission(**(fields | changes))


async def submit(store: Store, call: Submission) -> StoredCall:
    epochs = {grant.shard: grant.epoch for grant in store.grants()}
    return await store.submit_call(call, epoch=epochs[call.actor.shard])


def end(state: CallState = "cancelled", body: bytes = b"", at_ms: int = NOW_MS) -> CallEnd:
    return CallEnd(state, body, at_ms, at_ms + TTL_MS)


async def find(store: Store, call_id: str = "call-1") -> StoredCall:
    found = await store.call(TENANT_DEFAULT, call_id)
    assert found is not None
    return found


@pytest.mark.requirement("CALL-DURABLE")
async def test_a_call_and_its_message_are_there_after_a_restart(engine: Engine) -> None:
    async with engine.opened() as store:
        kept = await submit(store, submission())
        assert (kept.state, kept.ended_ms, kept.expires_ms) == ("pending", 0, 0)
    async with engine.opened() as store:
        assert await find(store) == kept
        (message,) = await store.outbox(0, 9)
        assert (message.message_id, message.sender) == (kept.message_id, CALLER)
        assert (message.receiver, message.body) == (actor_id("ada"), b"one")


@pytest.mark.requirement("CALL-KEY")
async def test_a_key_gives_the_call_of_its_first_time_and_refuses_another_request(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        first = await submit(store, submission(1, key="k"))
        assert await submit(store, submission(2, key="k")) == first
        with pytest.raises(KeyReusedError):
            await submit(store, submission(3, key="k", request=digest_bytes(b"two")))
        other = await submit(store, submission(4, key="k", method="subtract"))
        another = await submit(store, submission(5, key="k", actor=actor_id("bob")))
        stranger = await submit(
            store, submission(6, key="k", actor=actor_id("ada", tenant="elsewhere"))
        )
        ids = [call.call_id for call in (first, other, another, stranger)]
        assert ids == ["call-1", "call-4", "call-5", "call-6"]
        assert len(await store.outbox(0, 9)) == 4


@pytest.mark.requirement("CALL-ONCE")
@pytest.mark.parametrize("together", [1, 5])
async def test_the_turns_commit_writes_the_result_and_a_second_turn_is_refused(
    engine: Engine, together: int
) -> None:
    async with engine.opened() as store:
        hands = [Hand(store, f"actor-{number}") for number in range(together)]
        calls = [
            await submit(store, submission(number, actor=hand.actor))
            for number, hand in enumerate(hands)
        ]
        await asyncio.gather(
            *(
                hand.turn(state=b"s", consumes=call.message_id, call=end("completed", b"r"))
                for hand, call in zip(hands, calls, strict=True)
            )
        )
        for call in calls:
            found = await find(store, call.call_id)
            assert (found.state, found.body) == ("completed", b"r")
            assert (found.ended_ms, found.expires_ms) == (NOW_MS, NOW_MS + TTL_MS)
        assert await store.outbox(0, 9) == []
        with pytest.raises(MessageGoneError):
            await hands[0].turn(consumes=calls[0].message_id, call=end("completed", b"again"))
        assert (await find(store, calls[0].call_id)).body == b"r"


@pytest.mark.requirement("CALL-CANCEL")
async def test_a_call_that_ended_without_a_turn_has_no_message_any_more(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        call = await submit(store, submission())
        assert await store.end_call(call.message_id, end("cancelled"))
        assert not await store.end_call(call.message_id, end("failed", b"too late"))
        assert (await find(store)).state == "cancelled"
        assert await store.outbox(0, 9) == []
        with pytest.raises(MessageGoneError):
            await hand.turn(state=b"s", consumes=call.message_id, call=end("completed", b"r"))
        assert await store.load(hand.actor) is None


async def test_a_call_that_completed_cannot_be_taken_back(engine: Engine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        call = await submit(store, submission())
        turn = hand.turn(state=b"s", consumes=call.message_id, call=end("completed", b"r"))
        _, was_pending = await asyncio.gather(turn, store.end_call(call.message_id, end()))
        assert not was_pending
        assert (await find(store)).state == "completed"


async def test_a_dead_call_is_a_dead_letter_and_waits_again_when_that_is_replayed(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        call = await submit(store, submission())
        assert await store.end_call(call.message_id, end("dead", b"why"), error="it failed")
        (letter,) = await store.dead_letters(TENANT_DEFAULT, 9)
        assert (letter.message_id, letter.error, letter.attempts) == (
            call.message_id,
            "it failed",
            1,
        )
        assert (await find(store)).state == "dead"
        revived_id = await store.replay_dead_letter(TENANT_DEFAULT, call.message_id)
        again = await find(store)
        assert (again.state, again.message_id, again.body) == ("pending", revived_id, b"")
        assert (again.ended_ms, again.expires_ms) == (0, 0)
        assert [message.message_id for message in await store.outbox(0, 9)] == [revived_id]


@pytest.mark.requirement("CALL-EXPIRES")
async def test_an_end_counts_until_its_time_is_over_and_then_leaves_the_store(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        for number in range(4):
            call = await submit(store, submission(number, key=f"k{number}"))
            if number < 3:
                await store.end_call(call.message_id, end("cancelled"))
        engine.clock.wall_ms = NOW_MS + TTL_MS - 1
        assert (await find(store, "call-0")).state == "cancelled"
        engine.clock.wall_ms = NOW_MS + TTL_MS
        assert await store.call(TENANT_DEFAULT, "call-0") is None
        assert [row.call_id for row in await store.calls(page())] == ["call-3"]
        later: dict[str, Any] = {"now_ms": engine.clock.wall_ms, "request": digest_bytes(b"two")}
        renewed = await submit(store, submission(7, key="k0", **later))
        assert renewed.call_id == "call-7"
        engine.clock.wall_ms = NOW_MS  # what was removed is not there at any time
        await submit(store, submission(8, **later))
        assert await store.call(TENANT_DEFAULT, "call-1") is None
        assert await store.call(TENANT_DEFAULT, "call-2") is None


def page(**changes: Any) -> Page:
    fields: dict[str, Any] = {"tenant": TENANT_DEFAULT, "limit": 9}
    return Page(**(fields | changes))


async def test_calls_are_listed_by_submission_actor_and_state_without_their_bodies(
    engine: Engine,
) -> None:
    async with engine.opened() as store:
        bob = actor_id("bob")
        for number, actor in enumerate([None, bob, None, bob]):
            await submit(store, submission(number, actor=actor, now_ms=NOW_MS + number))
        first = await find(store, "call-0")
        await store.end_call(first.message_id, end("failed", b"why"))
        listed = await store.calls(page())
        assert [row.call_id for row in listed] == ["call-0", "call-1", "call-2", "call-3"]
        assert (listed[0].state, listed[0].body) == ("failed", b"")
        half = await store.calls(page(limit=2, after="call-1"))
        assert [row.call_id for row in half] == ["call-2", "call-3"]
        of_bob = await store.calls(page(), actor=bob)
        assert [row.call_id for row in of_bob] == ["call-1", "call-3"]
        pending = await store.calls(page(), state="pending")
        assert [row.call_id for row in pending] == ["call-1", "call-2", "call-3"]
        with pytest.raises(NotFoundError):
            await store.calls(page(after="call-9"))


@pytest.mark.requirement("STORE-TENANTS")
async def test_no_tenant_sees_the_calls_of_another(engine: Engine) -> None:
    async with engine.opened() as store:
        await submit(store, submission(1, actor=actor_id("ada", tenant="other")))
        assert await store.call(TENANT_DEFAULT, "call-1") is None
        assert await store.calls(page()) == []
        assert await store.call(Tenant("other"), "call-1") is not None


async def test_what_cannot_be_kept_is_refused_before_anything_is_written(engine: Engine) -> None:
    async with engine.opened() as store:
        with pytest.raises(FencedError):
            await store.submit_call(submission(), epoch=0)
        with pytest.raises(LimitExceededError, match=r"call\.key"):
            await submit(store, submission(key="k" * (IDEMPOTENCY_KEY_BYTES_MAX + 1)))
        assert await store.outbox(0, 9) == []


async def test_letters_are_listed_by_the_type_of_their_receiver(engine: Engine) -> None:
    async with engine.opened() as store:
        counter = actor_id("ada", kind="Counter")
        for number, actor in enumerate([None, counter]):
            call = await submit(store, submission(number, actor=actor))
            await store.end_call(call.message_id, end("dead"), error="x")
        listed = await store.dead_letters(TENANT_DEFAULT, 9, type_name="Counter")
        assert [letter.receiver for letter in listed] == [counter]
        assert len(await store.dead_letters(TENANT_DEFAULT, 9)) == 2
