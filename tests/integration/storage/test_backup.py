"""Backup beside a running writer; restore into a new, held store."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    FencedError,
    NotFoundError,
    StoreError,
)
from kelpie.ports.faults import faults_from
from kelpie.storage.records import AuditAppend, EventAppend, KvPut, OutboxRow
from kelpie.storage.sqlite.backup import restore_store
from tests.contract.store.world import FakeClock, Hand, SeededRng, SqliteEngine, effect
from tests.integration.failing import Failing
from tests.integration.storage.harness import names_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


def restore(engine: SqliteEngine, backup: Path) -> SqliteEngine:
    """Restore ``backup`` and return the engine over the new store."""
    restored = SqliteEngine(backup.parent / "restored")
    restored.rng = SeededRng(2)
    restore_store(backup, restored.path, clock=FakeClock(), rng=restored.rng)
    return restored


async def keep_committing(hand: Hand, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await hand.turn(
            state=b"%d" % (hand.version + 1),
            events=(EventAppend("turn", bytes(2_000)),),
            audit=(AuditAppend("turn", "p", b""),),
        )


async def test_a_backup_beside_a_writer_is_one_moment_of_the_store(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        blob = store.blobs.put_bytes(b"a blob")
        hands = [Hand(store, f"a{number}") for number in range(8)]
        for hand in hands:
            await hand.turn(state=b"1", events=(EventAppend("first", bytes(500_000)),))
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for hand in hands:
                group.create_task(keep_committing(hand, stop))
            await store.backup(tmp_path / "backup")
            stop.set()
        least = min(hand.version for hand in hands)
        assert least > 1
    async with restore(engine, tmp_path / "backup").opened() as copy:
        assert (await copy.check()).is_sound
        for hand in hands:
            loaded = await copy.load(hand.actor)
            assert loaded is not None
            assert loaded.event_sequence == loaded.version
            assert loaded.state == b"%d" % loaded.version
        assert copy.blobs.get(blob) == b"a blob"


@pytest.mark.requirement("STORE-FENCED", "STORE-RESTORE-HELD")
async def test_a_restored_store_is_held_new_and_fenced_from_the_old(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(effects=(effect(hand.actor, state="started"),))
        stale = hand.prepare()
        await store.backup(tmp_path / "backup")
        old, grants = await store.stats(), store.grants()
    restored = restore(engine, tmp_path / "backup")
    async with restored.opened() as copy:
        assert copy.held
        assert (await copy.stats()).incarnation != old.incarnation
        pairs = zip(grants, copy.grants(), strict=True)
        assert all(new.epoch > before.epoch for before, new in pairs)
        with pytest.raises(FencedError):
            await copy.commit(stale)
        (row,) = await copy.effects_open("", 9)
        assert row.session != copy.session
        assert row.state == "started"
        await copy.release()
    async with restored.opened() as copy:
        assert not copy.held


@pytest.mark.requirement("STORE-RESTORE-HELD")
async def test_held_outlives_a_restart(engine: SqliteEngine, tmp_path: Path) -> None:
    async with engine.opened() as store:
        await store.backup(tmp_path / "backup")
    restored = restore(engine, tmp_path / "backup")
    for _ in range(2):
        async with restored.opened() as copy:
            assert copy.held
            assert (await copy.stats()).held


async def test_nothing_is_overwritten(engine: SqliteEngine, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    async with engine.opened() as store:
        await store.backup(target)
        with pytest.raises(ConflictError):
            await store.backup(target)
        with pytest.raises(NotFoundError):
            await store.backup(tmp_path / "no" / "such" / "place")
    with pytest.raises(ConflictError):
        restore_store(target, engine.path, clock=FakeClock(), rng=SeededRng())
    with pytest.raises(NotFoundError):
        restore_store(tmp_path, tmp_path / "new", clock=FakeClock(), rng=SeededRng())
    assert names_in(tmp_path) == ["backup", "store"]


@pytest.mark.requirement("K-27")
@pytest.mark.parametrize("part", ["store.db", "manifest.json", "blob", "missing blob"])
async def test_a_damaged_backup_is_refused_and_leaves_nothing(
    engine: SqliteEngine, tmp_path: Path, part: str
) -> None:
    backup = tmp_path / "backup"
    async with engine.opened() as store:
        digest = store.blobs.put_bytes(b"blob")
        await Hand(store).turn(state=b"precious")
        await store.backup(backup)
    name = digest.removeprefix("sha256:")
    damaged = backup / "blobs" / name[:2] / name if "blob" in part else backup / part
    if part == "missing blob":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes().replace(b"precious", b"precioux")[:-3])
    with pytest.raises(CorruptionError):
        restore(engine, backup)
    assert list((tmp_path / "restored" / "store").glob("*")) == []


async def test_a_store_with_a_damaged_blob_is_not_backed_up(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        store.blobs.path(store.blobs.put_bytes(b"blob")).write_bytes(b"other")
        with pytest.raises(CorruptionError):
            await store.backup(tmp_path / "backup")
    assert names_in(tmp_path) == ["store"]


async def transfer(giver: Hand, taker: Hand, balances: dict[str, int]) -> None:
    """Move one unit from one actor to another by a message, in two commits."""
    send = OutboxRow(sender=giver.actor, receiver=taker.actor, body=b"1")
    balances[giver.actor.key] -= 1
    receipt = await giver.turn(state=b"%d" % balances[giver.actor.key], sends=(send,))
    balances[taker.actor.key] += 1
    (message_id,) = receipt.message_ids
    await taker.turn(state=b"%d" % balances[taker.actor.key], consumes=message_id)


async def test_a_backup_beside_transfers_conserves_the_money(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        pairs = [(Hand(store, f"g{n}"), Hand(store, f"t{n}")) for n in range(16)]
        balances = {hand.actor.key: 1_000 for pair in pairs for hand in pair}
        for hand in (hand for pair in pairs for hand in pair):
            await hand.turn(state=b"1000", events=(EventAppend("opened", bytes(100_000)),))
        stop = asyncio.Event()

        async def keep_moving(giver: Hand, taker: Hand) -> None:
            while not stop.is_set():
                await transfer(giver, taker, balances)

        async with asyncio.TaskGroup() as group:
            for pair in pairs:
                group.create_task(keep_moving(*pair))
            await transfer(Hand(store, "x"), Hand(store, "y"), {"x": 1, "y": 0})
            await store.backup(tmp_path / "backup")
            stop.set()
    async with restore(engine, tmp_path / "backup").opened() as copy:
        stored = [await copy.load(hand.actor) for pair in pairs for hand in pair]
        held = sum(int(actor.state) for actor in stored if actor is not None)
        under_way = len(await copy.outbox(0, 1_000))
        assert held + under_way == 32 * 1_000
        assert any(actor is not None and actor.version > 1 for actor in stored)
        assert (await copy.check()).is_sound


async def test_a_backup_of_a_store_that_was_damaged_before_is_refused_and_names_the_damage(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(kv=(KvPut("k", b"precious-value"),))
    engine.path.write_bytes(engine.path.read_bytes().replace(b"precious-", b"precioux-"))
    async with engine.opened() as store:
        await store.backup(tmp_path / "backup")
    with pytest.raises(CorruptionError, match="default/agent/ada") as caught:
        restore(engine, tmp_path / "backup")
    assert caught.value.fields["problems"] == 1
    assert list((tmp_path / "restored" / "store").glob("*")) == []


async def test_a_backup_that_lost_its_database_is_refused_and_leaves_nothing(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        await store.backup(tmp_path / "backup")
    (tmp_path / "backup" / "store.db").unlink()
    with pytest.raises(StoreError, match="No such file"):
        restore(engine, tmp_path / "backup")
    assert list((tmp_path / "restored" / "store").glob("*")) == []


class _FullAtSync:
    """A disk that finds no place for what was written when it is to be synced."""

    def fires(self, name: str) -> bool:
        if name == "storage.sync_fail":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return False


async def test_a_backup_that_finds_the_disk_full_at_its_sync_says_so_and_leaves_nothing(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    async with engine.opened() as store:
        with faults_from(_FullAtSync()), pytest.raises(DiskFullError, match="no space"):
            await store.backup(tmp_path / "backup")
        assert names_in(tmp_path) == ["store"]
        await store.backup(tmp_path / "backup")
    assert names_in(tmp_path) == ["backup", "store"]


async def test_a_sync_that_fails_anywhere_in_a_backup_or_a_restore_leaves_nothing(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    backup, target = tmp_path / "backup", tmp_path / "new" / "kelpie.db"
    before, source = 0, Failing("storage.sync_fail")
    async with engine.opened() as store:
        store.blobs.put_bytes(b"a blob")
        for before in range(99):
            source = Failing("storage.sync_fail", after=before)
            try:
                with faults_from(source):
                    await store.backup(backup)
                break
            except StoreError:
                assert names_in(tmp_path) == ["store"]
    assert source.happened == 0
    assert before > 3, "its files, and its name"
    for before in range(99):
        source = Failing("storage.sync_fail", after=before)
        try:
            with faults_from(source):
                restore_store(backup, target, clock=FakeClock(), rng=SeededRng(2))
            break
        except StoreError:
            assert names_in(target.parent) == []
    assert source.happened == 0
    assert names_in(target.parent) == ["kelpie.db", "kelpie.db.blobs"]
