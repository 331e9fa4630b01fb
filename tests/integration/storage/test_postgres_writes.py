"""What PostgreSQL adds to the promises of commits: batches, lost connections, take-overs."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    CommitUnknownError,
    ConflictError,
    FencedError,
    InvalidFieldError,
    KeyReusedError,
    MessageGoneError,
    StoreError,
    UnavailableError,
    VersionConflictError,
)
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.core.limits import DATABASE_AWAY_MS_MAX
from kelpie.storage.audit import verify_chain
from kelpie.storage.postgres.plan import ORDINAL_BITS
from kelpie.storage.postgres.store import PostgresStore
from kelpie.storage.records import (
    AuditAppend,
    CommitReceipt,
    EventAppend,
    KvPut,
    ListPut,
    OutboxRow,
    ReplyRecord,
    ShardGrant,
    StoredPause,
)
from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import NOW_MS, FakeClock, Hand, actor_id, effect
from tests.integration.storage.lossy import Loss, LossyProxy
from tests.waiting import eventually_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PostgresEngine]:
    made = PostgresEngine(tmp_path)
    yield made
    asyncio.run(made.discard())


class PatientClock(FakeClock):
    """Every wait passes at once, and is seen on the clock of boot time."""

    def __init__(self, *, skipped_s: float = 0) -> None:
        super().__init__()
        self.skipped_s = skipped_s
        self.passed_ns = 0

    def boot_ns(self) -> int:
        return super().boot_ns() + self.passed_ns

    async def sleep(self, seconds: float) -> None:
        self.passed_ns += int(max(seconds, self.skipped_s) * 1e9)
        await asyncio.sleep(0)


@asynccontextmanager
async def behind_proxy(
    engine: PostgresEngine, clock: FakeClock
) -> AsyncIterator[tuple[PostgresStore, LossyProxy]]:
    """A store that owns everything, and reaches its server only through the proxy."""
    async with engine.opened():
        pass  # makes the database
    async with LossyProxy(engine.server.port).serving() as proxy:
        dsn = engine.server.dsn(engine.database).replace(str(engine.server.port), str(proxy.port))
        store = await PostgresStore.open(dsn, clock=clock, rng=engine.rng, blobs_path=engine.blobs)
        try:
            await store.claim_all()
            await settle(store)
            yield store, proxy
        finally:
            proxy.is_shut = False
            await store.close()


async def settle(store: PostgresStore) -> None:
    """Return once no lane does anything, housework included."""

    async def is_idle() -> bool:
        lanes = store._parts.lanes
        return not any(lane._task is not None or lane._is_scheduled for lane in lanes)

    await eventually_async(is_idle, within_s=30, what="every lane is idle")


def kinds(outcomes: Sequence[Any]) -> list[Any]:
    return [o.version if isinstance(o, CommitReceipt) else type(o) for o in outcomes]


def same_lane(count: int) -> list[str]:
    """Keys of actors whose shards take one lane."""
    keys = (f"a{number}" for number in range(1_000))
    return [key for key in keys if actor_id(key).shard % 4 == 1][:count]


# --- batches ------------------------------------------------------------------------------------


async def test_one_batch_tells_its_members_apart(engine: PostgresEngine) -> None:
    async with engine.opened() as store:
        hands = [Hand(store, key) for key in same_lane(7)]
        kept = ReplyRecord("m", "k", digest_bytes(b"1"), b"one", NOW_MS + 9)
        await hands[5].turn(reply=kept)
        await hands[6].turn(effects=(effect(hands[6].actor, "taken"),))
        outcomes = await asyncio.gather(
            store.commit(hands[0].prepare(state=b"fine")),
            store.commit(hands[1].prepare(state=b"late", expected_version=3)),
            store.commit(hands[2].prepare(state=b"zombie", epoch=hands[2].prepare().epoch - 1)),
            store.commit(hands[3].prepare(state=b"twice", consumes=404)),
            store.commit(hands[4].prepare(effects=(effect(hands[4].actor, "taken"),))),
            store.commit(hands[5].prepare(reply=kept)),
            store.commit(hands[6].prepare(state=b"fine too")),
            return_exceptions=True,
        )
        assert kinds(outcomes) == [
            1,
            VersionConflictError,
            FencedError,
            MessageGoneError,
            ConflictError,
            KeyReusedError,
            2,
        ]
        states = [await store.load(hand.actor) for hand in hands]
        assert [None if loaded is None else loaded.state for loaded in states] == [
            *(b"fine", None, None, None, None, b"", b"fine too")
        ]


async def test_many_turns_of_one_actor_share_a_transaction(engine: PostgresEngine) -> None:
    count = 100
    async with engine.opened() as store:
        hand = Hand(store)
        send = OutboxRow(sender=hand.actor, receiver=hand.actor, body=b"")
        receipts = await asyncio.gather(
            *(
                store.commit(
                    hand.prepare(
                        expected_version=version,
                        state=b"%d" % version,
                        sends=(send,),
                        events=(EventAppend("e", b"%d" % version),) * 2,
                    )
                )
                for version in range(count)
            )
        )
        assert [receipt.version for receipt in receipts] == list(range(1, count + 1))
        assert [r.first_event_sequence for r in receipts] == list(range(1, 2 * count, 2))
        ids = [message_id for receipt in receipts for message_id in receipt.message_ids]
        assert ids == sorted(set(ids))
        assert len({message_id >> ORDINAL_BITS for message_id in ids}) == 1
        events = await store.events(hand.actor, 0, 1_000)
        assert [event.body for event in events] == [b"%d" % (n // 2) for n in range(2 * count)]
        assert [message.message_id for message in await store.outbox(0, 1_000)] == ids


async def test_a_refused_turn_in_the_middle_of_an_actors_many_ends_them_there(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store:
        hand, other = Hand(store, same_lane(2)[0]), Hand(store, same_lane(2)[1])
        commits = [hand.prepare(expected_version=n, state=b"%d" % n) for n in range(9)]
        commits[4] = hand.prepare(expected_version=4, consumes=404)
        outcomes = await asyncio.gather(
            *map(store.commit, commits), other.turn(state=b"x"), return_exceptions=True
        )
        refused = [MessageGoneError] + [VersionConflictError] * 4
        assert kinds(outcomes) == [1, 2, 3, 4, *refused, 1]


async def test_a_chain_goes_on_across_refusals_pauses_and_owners(engine: PostgresEngine) -> None:
    note = AuditAppend("noted", "p", b"{}")
    async with engine.shared() as first, engine.beside(first) as second:
        await first.claim_all()
        hand, other = Hand(first, same_lane(2)[0]), Hand(first, same_lane(2)[1])
        shard = hand.actor.shard
        outcomes = await asyncio.gather(
            first.commit(hand.prepare(audit=(note, note))),
            first.commit(hand.prepare(expected_version=7, audit=(note,))),
            first.commit(other.prepare(audit=(note,), consumes=404)),
            first.commit(hand.prepare(expected_version=1, audit=(note,))),
            first.pause_actor(StoredPause(hand.actor, "p", NOW_MS), epoch=hand.prepare().epoch),
            return_exceptions=True,
        )
        assert kinds(outcomes) == [1, VersionConflictError, MessageGoneError, 2, bool]
        await first.end_session(first.session, None, now_ms=NOW_MS)
        await second.claim_all()
        hand.store, hand.version = second, 2
        await hand.turn(audit=(note,))
        stale = await asyncio.gather(
            first.commit(hand.prepare(epoch=1, audit=(note,))), return_exceptions=True
        )
        assert kinds(stale) == [FencedError]
        await hand.turn(audit=(note,))
        records = [record async for record in second.audit_chain(shard)]
        assert [record.kind for record in records] == [
            *("noted", "noted", "noted", "actor.paused", "noted", "noted")
        ]
        assert verify_chain(records, shard=shard).sequence == 6


@pytest.mark.requirement("K-13")
async def test_a_batch_that_meets_a_take_over_is_refused_whole_and_writes_nothing(
    engine: PostgresEngine,
) -> None:
    async with engine.shared() as first, engine.beside(first) as second:
        await first.claim_all()
        zombies = [Hand(first, key).prepare(state=b"zombie") for key in same_lane(40)]
        await second.end_session(first.session, None, now_ms=NOW_MS)
        await second.claim_all()
        outcomes = await asyncio.gather(*map(first.commit, zombies), return_exceptions=True)
        assert set(kinds(outcomes)) == {FencedError}
        assert (await second.stats()).actors == 0
        assert await first.outbox(0, 9) == []


async def test_what_comes_too_late_for_a_lost_shard_is_left_to_its_owner(
    engine: PostgresEngine,
) -> None:
    async with engine.shared() as first, engine.beside(first) as second:
        await first.claim_all()
        hand = Hand(first)
        send = OutboxRow(sender=hand.actor, receiver=hand.actor, body=b"hi")
        (message_id,) = (await hand.turn(sends=(send,))).message_ids
        owned = [ShardGrant(*grant) for grant in first.grants()]
        await second.end_session(first.session, None, now_ms=NOW_MS)
        await second.claim_all()
        assert len(owned) == len(first.grants()), "it has not noticed yet"
        await first.outbox_failed(message_id, error="x", retry_at_ms=None, now_ms=NOW_MS)
        (message,) = await second.outbox(0, 9)
        assert (message.message_id, message.attempts) == (message_id, 0)
        assert await second.dead_letters(TENANT_DEFAULT, 9) == []
        await second.outbox_failed(message_id, error="y", retry_at_ms=None, now_ms=NOW_MS)
        assert len(await second.dead_letters(TENANT_DEFAULT, 9)) == 1


async def test_a_row_that_no_index_can_hold_fails_alone(engine: PostgresEngine) -> None:
    async with engine.opened() as store:
        keys = same_lane(3)
        # Names that do not compress, each within its own limit.
        names = ["".join(chr(33 + byte % 90) for byte in engine.rng.bytes(1_000)) for _ in range(4)]
        wide = (ListPut(names[0], names[1] + names[2], names[3] * 2, b""),)
        outcomes = await asyncio.gather(
            store.commit(Hand(store, keys[0]).prepare(state=b"a")),
            store.commit(Hand(store, keys[1]).prepare(lists=wide)),
            store.commit(Hand(store, keys[2]).prepare(state=b"c")),
            return_exceptions=True,
        )
        assert kinds(outcomes) == [1, InvalidFieldError, 1]
        assert await store.load(actor_id(keys[1])) is None


async def test_texts_come_back_as_they_were_written(engine: PostgresEngine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        keys = ["a\0b", "a\1b", "a\0", "é\1\0"]
        await hand.turn(
            kv=tuple(KvPut(key, key.encode()) for key in keys),
            audit=(AuditAppend("k\0", "p\1", b""),),
        )
        found = await store.kv_range(hand.actor, "", "\U0010ffff", limit=9)
        assert found == sorted((key, key.encode()) for key in keys)
        records = [record async for record in store.audit_chain(hand.actor.shard)]
        assert [(record.kind, record.principal) for record in records] == [("k\0", "p\1")]
        verify_chain(records, shard=hand.actor.shard)


async def test_what_the_server_does_itself_is_refused_with_its_name(
    engine: PostgresEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        with pytest.raises(UnavailableError, match="pg_dump"):
            await store.backup(tmp_path / "backup")
        with pytest.raises(UnavailableError, match="autovacuum"):
            await store.compact()
        assert not (tmp_path / "backup").exists()


# --- lost connections ---------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["query", "answer", "connection"])
async def test_a_commit_whose_connection_breaks_happens_exactly_once(
    engine: PostgresEngine, loss: Loss
) -> None:
    async with behind_proxy(engine, PatientClock()) as (store, proxy):
        hand = Hand(store)
        await hand.turn(state=b"zero", events=(EventAppend("e", b"0"),))
        send = OutboxRow(sender=hand.actor, receiver=hand.actor, body=b"")
        for number in range(1, 4):
            proxy.loss = loss
            receipt = await hand.turn(
                state=b"%d" % number, events=(EventAppend("e", b"%d" % number),), sends=(send,)
            )
            assert (receipt.version, receipt.first_event_sequence) == (number + 1, number + 1)
            assert proxy.losses == number
            waiting = [message.message_id for message in await store.outbox(0, 9)]
            assert waiting[-1:] == list(receipt.message_ids)
            assert len(waiting) == number
        events = await store.events(hand.actor, 0, 9)
        assert [event.body for event in events] == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("loss", ["query", "answer"])
async def test_a_single_write_whose_connection_breaks_happens_exactly_once(
    engine: PostgresEngine, loss: Loss
) -> None:
    async with behind_proxy(engine, PatientClock()) as (store, proxy):
        pause = StoredPause(actor_id("ada"), "p", NOW_MS)
        epoch = Hand(store).prepare().epoch
        await store.resume_actor(pause, epoch=epoch)
        proxy.loss = loss
        assert await store.pause_actor(pause, epoch=epoch)
        assert proxy.losses == 1
        assert not await store.pause_actor(pause, epoch=epoch)
        chain = [record async for record in store.audit_chain(pause.actor.shard)]
        assert [record.kind for record in chain] == ["actor.paused"]
        verify_chain(chain, shard=pause.actor.shard)


async def test_killed_backends_lose_and_repeat_nothing(engine: PostgresEngine) -> None:
    async with engine.opened():
        pass
    engine.clock = PatientClock()
    async with engine.opened() as store:
        hands = [Hand(store, f"a{number}") for number in range(8)]

        async def work(hand: Hand) -> None:
            for number in range(20):
                await hand.turn(state=b"s", events=(EventAppend("e", b"%d" % number),))

        async def kill() -> None:
            for _ in range(5):
                await engine.server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'kelpie%w%'",
                    database=engine.database,
                )

        await asyncio.gather(kill(), *map(work, hands))
        for hand in hands:
            loaded = await store.load(hand.actor)
            assert loaded is not None
            assert (loaded.version, loaded.event_sequence) == (20, 20)
            events = await store.events(hand.actor, 0, 99)
            assert [event.body for event in events] == [b"%d" % n for n in range(20)]


async def test_an_outcome_that_cannot_be_asked_for_in_time_is_unknown(
    engine: PostgresEngine,
) -> None:
    clock = PatientClock(skipped_s=DATABASE_AWAY_MS_MAX / 4_000)
    async with behind_proxy(engine, clock) as (store, proxy):
        hand = Hand(store)
        await hand.turn(state=b"one")
        await settle(store)
        proxy.loss, proxy.is_shut = "answer", True
        with pytest.raises(CommitUnknownError):
            await hand.turn(state=b"two")
        with pytest.raises(StoreError, match="nothing was kept") as refused:
            await hand.turn(state=b"three")
        assert not isinstance(refused.value, CommitUnknownError)
        proxy.is_shut = False
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert (loaded.version, loaded.state) == (2, b"two"), "the server had kept it"
        hand.version = loaded.version
        await hand.turn(state=b"four")


async def test_a_lost_renewal_and_a_lost_claim_are_asked_for_again(
    engine: PostgresEngine,
) -> None:
    async with behind_proxy(engine, PatientClock()) as (store, proxy):
        await store.release_shards(store.session, store.grants()[:2])
        view = await store.cluster()
        free = [ShardGrant(row.shard, row.epoch) for row in view.shards if not row.session]
        proxy.loss = "answer"
        taken = await store.claim(store.session, free)
        assert [grant.shard for grant in taken] == [grant.shard for grant in free]
        owners = (await store.cluster()).shards
        assert [owners[grant.shard].epoch for grant in taken] == [g.epoch for g in taken]
        proxy.loss = "answer"
        assert await store.renew(store.session) >= 1
        assert proxy.losses == 2


# --- connections --------------------------------------------------------------------------------


async def test_a_node_needs_at_most_eight_connections(engine: PostgresEngine) -> None:
    async with behind_proxy(engine, PatientClock()) as (store, proxy):
        hands = [Hand(store, f"a{number}") for number in range(64)]
        await asyncio.gather(*(hand.turn(state=b"s") for hand in hands))
        await asyncio.gather(
            *(store.load(hand.actor) for hand in hands), store.renew(store.session)
        )
        assert 4 < proxy.connections <= 8


async def test_closing_waits_for_what_was_queued_and_ends_the_session(
    engine: PostgresEngine,
) -> None:
    async with engine.shared() as store:
        await store.claim_all()
        turns = [
            store.commit(Hand(store, f"a{number}").prepare(state=b"s")) for number in range(99)
        ]
        session = store.session
        await store.close()
        assert {receipt.version for receipt in await asyncio.gather(*turns)} == {1}
        with pytest.raises(StoreError, match="closed"):
            await store.commit(Hand(store, "late").prepare())
        assert store.grants() == ()
    async with engine.shared() as store:
        assert await store.session_ended(session)
        assert all(not row.session for row in (await store.cluster()).shards)
