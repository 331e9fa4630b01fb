"""Compacting gives space back beside a running holder, and loses nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import ConflictError, StoreError, StoreHeldError
from kelpie.storage.records import KvDelete, KvPut
from kelpie.storage.sqlite.backup import restore_store
from tests.contract.store.world import FakeClock, Hand, SeededRng, SqliteEngine

if TYPE_CHECKING:
    from pathlib import Path

    from kelpie.storage.sqlite.store import SqliteStore

KEYS = [f"k{number}" for number in range(40)]
SIZE_BYTES = 100_000


async def fill_and_empty(store: SqliteStore) -> Hand:
    """Leave one small actor, and the room of forty large values."""
    hand = Hand(store)
    for key in KEYS:
        await hand.turn(state=b"kept", kv=(KvPut(key, bytes(SIZE_BYTES)),))
    await hand.turn(kv=tuple(map(KvDelete, KEYS)))
    return hand


async def test_removed_rows_give_their_space_back(tmp_path: Path) -> None:
    async with SqliteEngine(tmp_path).opened() as store:
        hand = await fill_and_empty(store)
        done = await store.compact()
        assert done.before_bytes - done.after_bytes > 0.8 * len(KEYS) * SIZE_BYTES
        assert done.after_bytes == (tmp_path / "store" / "kelpie.db").stat().st_size
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert loaded.state == b"kept"
        assert (await store.check()).is_sound
        again = await store.compact()
        assert again.before_bytes == again.after_bytes == done.after_bytes


async def test_commits_go_on_between_the_slices(tmp_path: Path) -> None:
    async with SqliteEngine(tmp_path).opened() as store:
        await fill_and_empty(store)
        others = [Hand(store, f"a{number}") for number in range(8)]
        compacting = asyncio.ensure_future(store.compact())
        counted = 0
        while not compacting.done():
            await asyncio.gather(*(other.turn(state=b"%d" % counted) for other in others))
            counted += 1
        assert counted > 1
        assert compacting.result().after_bytes < compacting.result().before_bytes
        for other in others:
            loaded = await store.load(other.actor)
            assert loaded is not None
            assert loaded.version == counted
        assert (await store.check()).is_sound


async def test_a_file_that_cannot_is_refused_and_a_restore_makes_one_that_can(
    tmp_path: Path,
) -> None:
    engine = SqliteEngine(tmp_path)
    async with engine.opened() as store:
        await fill_and_empty(store)
    with closing(sqlite3.connect(engine.path)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
    async with engine.opened() as store:
        with pytest.raises(ConflictError, match="back it up and restore it"):
            await store.compact()
        await store.backup(tmp_path / "backup")
    restored = SqliteEngine(tmp_path / "new")
    restored.rng = SeededRng(2)
    restore_store(tmp_path / "backup", restored.path, clock=FakeClock(), rng=restored.rng)
    async with restored.opened() as store:
        done = await store.compact()
        assert done.after_bytes <= done.before_bytes
        assert (await store.check()).is_sound


async def test_only_the_holder_compacts(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path)
    async with engine.opened() as store:
        await Hand(store).turn(state=b"s")
        beside = await engine.open(read_only=True)
        with pytest.raises(StoreHeldError):
            await beside.compact()
        await beside.close()
    with pytest.raises(StoreError, match="closed"):
        await store.compact()
