"""Why the shared engine refuses a member, and what an opening or a closing leaves behind."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import ConflictError, CorruptionError, StoreAwayError
from kelpie.storage.postgres.diagnosis import find_call, find_refusal
from kelpie.storage.postgres.driver import READER_SETTINGS, connect
from kelpie.storage.postgres.plan import Append
from kelpie.storage.postgres.store import PostgresStore
from kelpie.storage.records import (
    ListDelete,
    ListPut,
    OutboxRow,
    ReminderRow,
    StreamChunk,
    Submission,
)
from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import NOW_MS, Hand, effect
from tests.integration.storage.lossy import LossyProxy
from tests.waiting import eventually_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from kelpie.storage.postgres.driver import ServerConnection


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PostgresEngine]:
    made = PostgresEngine(tmp_path)
    yield made
    asyncio.run(made.discard())


@asynccontextmanager
async def looking(engine: PostgresEngine) -> AsyncIterator[ServerConnection]:
    """A connection that only reads."""
    dsn = engine.server.dsn(engine.database)
    connection = await connect(dsn, name="looking", settings=READER_SETTINGS)
    try:
        yield connection
    finally:
        await connection.close()


def submission(hand: Hand, **changes: Any) -> Submission:
    fields: dict[str, Any] = {
        "call_id": "call-1",
        "actor": hand.actor,
        "method": "m",
        "sender": hand.actor,
        "principal": "p",
        "key": "k",
        "request": digest_bytes(b"r"),
        "body": b"body",
        "now_ms": NOW_MS,
    }
    return Submission(**(fields | changes))


# --- reasons ------------------------------------------------------------------------------------


async def test_a_turn_whose_cause_waits_and_whose_rows_are_its_own_is_given_no_reason(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store, looking(engine) as connection:
        hand, other = Hand(store), Hand(store, "bob")
        await other.turn(lists=(ListPut("c", "theirs", "s", b""),))
        (message_id,) = (
            await hand.turn(
                sends=(OutboxRow(sender=hand.actor, receiver=hand.actor, body=b""),),
                reminders=(ReminderRow(actor=hand.actor, name="wake", due_ms=NOW_MS, body=b""),),
                effects=(effect(hand.actor),),
            )
        ).message_ids
        consuming = {"consumes": message_id, "effects": (effect(hand.actor),)}
        firing = {"fired": ("wake", NOW_MS), "lists": (ListDelete("c", "theirs"),)}
        for cause in (consuming, firing):
            assert await find_refusal(connection, hand.prepare(**cause)) is None
            await hand.turn(**cause)
        assert hand.version == 3, "and so it was written"
        taken = hand.prepare(lists=(ListPut("c", "theirs", "s", b""),))
        assert isinstance(await find_refusal(connection, taken), ConflictError)


async def test_chunks_are_given_a_reason_only_when_they_do_not_follow_in_their_attempt(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store, looking(engine) as connection:
        hand = Hand(store)
        await hand.turn()
        epoch = hand.prepare().epoch

        async def reason(*places: tuple[int, int]) -> object:
            chunks = (StreamChunk("effect-1", *place, "text", b"") for place in places)
            return await find_refusal(connection, Append(hand.actor, epoch, tuple(chunks)))

        assert await reason((1, 1), (1, 2), (2, 1)) is None
        assert isinstance(await reason((1, 1), (2, 1), (1, 1)), ConflictError)


async def test_a_call_is_known_again_by_its_key_and_by_nothing_else(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store, looking(engine) as connection:
        hand = Hand(store)
        epoch = hand.prepare().epoch
        kept = await store.submit_call(submission(hand), epoch=epoch)
        await store.submit_call(submission(hand, key="", call_id="call-2"), epoch=epoch)
        assert await find_call(connection, submission(hand, call_id="call-3")) == kept
        assert await find_call(connection, submission(hand, key="")) is None


async def test_a_kept_call_that_is_damaged_is_never_given_for_its_key(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        epoch = hand.prepare().epoch
        await store.submit_call(submission(hand), epoch=epoch)
        await engine.server.execute(
            "UPDATE kelpie.calls SET checksum = checksum # 1", database=engine.database
        )
        with pytest.raises(CorruptionError, match=r"call call-1 of .* is damaged"):
            await store.submit_call(submission(hand, call_id="call-2"), epoch=epoch)
        assert len(await store.outbox(0, 9)) == 1, "it was not taken for a new one"


# --- opening and closing ------------------------------------------------------------------------


class NarrowProxy(LossyProxy):
    """Lets so many connections through; the others it breaks off, or leaves without an answer."""

    def __init__(self, target_port: int, *, width: int, is_silent: bool = False) -> None:
        super().__init__(target_port)
        self.width = width
        self.is_silent = is_silent
        self.is_full = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.connections < self.width:
            await super()._serve(reader, writer)
            return
        self.is_full.set()
        if self.is_silent:
            await reader.read()
        writer.transport.abort()


async def open_through(engine: PostgresEngine, proxy: LossyProxy) -> PostgresStore:
    dsn = engine.server.dsn(engine.database).replace(str(engine.server.port), str(proxy.port))
    return await PostgresStore.open(
        dsn, clock=engine.clock, rng=engine.rng, blobs_path=engine.blobs
    )


async def is_deserted(proxy: LossyProxy) -> None:
    """Return once nobody is connected through the proxy."""

    async def is_empty() -> bool:
        return proxy.connections == 0

    await eventually_async(is_empty, within_s=30, what="every connection is closed")


@pytest.mark.parametrize("width", [1, 2, 4])
async def test_an_opening_that_gets_too_few_connections_lets_go_of_those_it_got(
    engine: PostgresEngine, width: int
) -> None:
    async with engine.opened():
        pass  # makes the database
    async with NarrowProxy(engine.server.port, width=width).serving() as proxy:
        with pytest.raises(StoreAwayError, match="the store"):
            await open_through(engine, proxy)
        await is_deserted(proxy)
        assert proxy.connections == 0


async def test_an_opening_that_is_given_up_half_way_lets_go_of_its_connections(
    engine: PostgresEngine,
) -> None:
    async with engine.opened():
        pass  # makes the database
    narrow = NarrowProxy(engine.server.port, width=3, is_silent=True)
    async with narrow.serving() as proxy:
        opening = asyncio.create_task(open_through(engine, proxy))
        await narrow.is_full.wait()
        assert proxy.connections == 3
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await is_deserted(proxy)
        assert opening.cancelled()


async def test_claiming_all_again_goes_on_with_the_session_and_takes_what_is_free(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store:
        session, before = store.session, store.grants()
        await store.release_shards(session, before[:2])
        assert len(store.grants()) == len(before) - 2
        after = await store.claim_all()
        assert store.session == session
        assert [grant.shard for grant in after] == [grant.shard for grant in before]
        assert [grant.epoch for grant in after[2:]] == [grant.epoch for grant in before[2:]]
        assert after[0].epoch > before[0].epoch, "a new claim is a new epoch"


async def test_shards_given_back_while_the_store_closes_are_free_with_all_the_others(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store:
        session = store.session
        await asyncio.gather(store.release_shards(session, store.grants()[:2]), store.close())
        assert store.grants() == ()
    async with engine.shared() as other:
        assert await other.session_ended(session)
        assert not any(row.session for row in (await other.cluster()).shards)
