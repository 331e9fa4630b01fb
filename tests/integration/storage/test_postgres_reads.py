"""What only reads of a shared database promise: whose work is read, and what is held back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from kelpie.core.errors import CorruptionError
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.cluster import NodeRow
from kelpie.storage.records import (
    AuditAppend,
    EventAppend,
    KvPut,
    OutboxRow,
    ReminderRow,
    ShardGrant,
)
from kelpie.storage.soundness import PROBLEMS_MAX
from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import NOW_MS, Hand, effect
from tests.postgres import find_programs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kelpie.storage.postgres.store import PostgresStore


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PostgresEngine]:
    made = PostgresEngine(tmp_path)
    yield made
    asyncio.run(made.discard())


async def join(store: PostgresStore, name: str, *shards: int) -> dict[int, int]:
    """Join, own the shards, and return their epochs."""
    place = f"{name}:1"
    row = NodeRow(f"session-{name}", name, place, "running", 0, 5_000, False, False, NOW_MS, 0)
    await store.join(row)
    view = await store.cluster()
    wish = [ShardGrant(shard, view.shards[shard].epoch) for shard in shards]
    return dict(await store.claim(row.session, wish))


def test_a_machine_without_the_server_fails_the_test_and_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="sudo apt-get install -y postgresql"):
        find_programs(str(tmp_path), servers=tmp_path)
    assert (find_programs() / "postgres").exists()


@pytest.mark.requirement("K-13")
async def test_a_session_reads_the_work_of_its_own_shards(engine: PostgresEngine) -> None:
    async with engine.shared() as first, engine.shared() as second:
        ada, bob = Hand(first, "ada"), Hand(second, "bob")
        assert ada.actor.shard != bob.actor.shard
        epochs = await join(first, "a", ada.actor.shard)
        epochs |= await join(second, "b", bob.actor.shard)
        for hand, other in ((ada, bob), (bob, ada)):
            await hand.turn(
                epoch=epochs[hand.actor.shard],
                sends=(OutboxRow(sender=hand.actor, receiver=other.actor, body=b"hi"),),
                reminders=(ReminderRow(actor=hand.actor, name="r", due_ms=5, body=b""),),
                effects=(effect(hand.actor, f"effect-{hand.actor.key}"),),
            )
        for hand in (ada, bob):
            (message,) = await hand.store.outbox(0, 9)
            assert message.receiver == hand.actor, "its receiver's owner delivers it"
            assert [row.actor for row in await hand.store.reminders_due(9, 9)] == [hand.actor]
            assert [row.actor for row in await hand.store.effects_open("", 9)] == [hand.actor]
        assert (await first.stats()).outbox == 2
        await first.end_session("session-a", None, now_ms=NOW_MS)
        assert await first.outbox(0, 9) == []
        assert await first.reminder_next_ms() is None
        view = await second.cluster()
        shard = ada.actor.shard
        await second.claim("session-b", [ShardGrant(shard, view.shards[shard].epoch)])
        assert len(await second.outbox(0, 9)) == 2, "what the dead left is its own now"
        assert len(await second.effects_open("", 9)) == 2


async def test_events_wait_for_older_transactions_and_never_come_behind_a_cursor(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(events=(EventAppend("before", b""),))
        slow = await asyncpg.connect(engine.server.dsn(engine.database))
        try:
            async with slow.transaction():
                await slow.fetchval("SELECT pg_current_xact_id()")  # now it could still write
                await hand.turn(events=(EventAppend("after", b""),))
                tail = await store.events_tail(TENANT_DEFAULT, 0, 9)
                assert [event.kind for event in tail] == ["before"]
                own = await store.events(hand.actor, 0, 9)
                assert [event.kind for event in own] == ["before", "after"]
        finally:
            await slow.close()
        rest = await store.events_tail(TENANT_DEFAULT, tail[-1].position, 9)
        assert [event.kind for event in rest] == ["after"]


async def test_a_damaged_row_is_an_error_that_names_its_actor(engine: PostgresEngine) -> None:
    async with engine.opened() as store:
        hand, sound = Hand(store), Hand(store, "bob")
        await hand.turn(
            state=b"state",
            kv=(KvPut("k", b"value"),),
            audit=(AuditAppend("done", "p", b"{}"),),
        )
        await sound.turn(state=b"state")
        assert (await store.check()).is_sound
        await engine.server.execute(
            "UPDATE kelpie.actors SET state = 'stale' WHERE actor LIKE '%ada'",
            "UPDATE kelpie.kv SET value = 'valuE'",
            "UPDATE kelpie.audit SET principal = 'q'",
            database=engine.database,
        )
        name = str(hand.actor)
        with pytest.raises(CorruptionError, match=name):
            await store.load(hand.actor)
        with pytest.raises(CorruptionError, match=name):
            await store.kv_get(hand.actor, "k")
        report = await store.check()
        assert report.damaged == (name,)
        assert len(report.problems) == 3, "a state, a value, a link"
        assert (await store.load(sound.actor)) is not None


async def test_a_check_of_a_ruined_database_tells_the_first_problems_alone(
    engine: PostgresEngine,
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(kv=tuple(KvPut(f"k{n:03}", b"v") for n in range(PROBLEMS_MAX + 5)))
        await engine.server.execute("UPDATE kelpie.kv SET value = 'w'", database=engine.database)
        report = await store.check()
        assert len(report.problems) == PROBLEMS_MAX
        assert report.damaged == (str(hand.actor),)
        await hand.turn(state=b"goes on")
        assert await store.check() == report


async def test_keys_have_the_order_of_their_bytes_whatever_the_servers_language(
    engine: PostgresEngine,
) -> None:
    keys = ["", "\0", "\0\1", "\1", "\1\0", "\2", "A", "B", "_", "a", "b", "ä", "Ω", "😀"]
    assert keys == sorted(keys, key=str.encode)
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(kv=tuple(KvPut(key, key.encode()) for key in reversed(keys)))
        found = await store.kv_range(hand.actor, "", "\U0010ffff", limit=99)
        assert [key for key, _ in found] == keys
        (last,) = await store.kv_range(hand.actor, "\0", "\1", limit=1, descending=True)
        assert last == ("\0\1", b"\0\1")
