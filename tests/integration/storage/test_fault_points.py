"""Each fault point of the store fails as the real thing does, and leaves nothing half done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import (
    CommitUnknownError,
    CorruptionError,
    DiskFullError,
    KelpieError,
    OverloadedError,
    StoreError,
    StoreHeldError,
    VersionConflictError,
)
from kelpie.ports.faults import faults_from
from kelpie.storage.records import EventAppend
from tests.contract.store.world import Hand, SqliteEngine
from tests.integration.failing import Failing
from tests.integration.storage.harness import names_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


REFUSALS: list[tuple[str, type[KelpieError]]] = [
    ("storage.write_fail", StoreError),
    ("storage.locked", StoreHeldError),
    ("storage.partial_write", StoreError),
    ("storage.disk_full", DiskFullError),
    ("concurrency.deadlock", StoreHeldError),
    ("concurrency.access_conflict", VersionConflictError),
    ("resource.commit_queue_full", OverloadedError),
]


@pytest.mark.requirement("K-08")
@pytest.mark.parametrize(("name", "error"), REFUSALS)
async def test_a_refused_commit_leaves_nothing_and_the_next_one_succeeds(
    engine: SqliteEngine, name: str, error: type[KelpieError]
) -> None:
    source = Failing(name)
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"one")
        with faults_from(source), pytest.raises(error):
            await hand.turn(state=b"two", events=(EventAppend("turn", b"two"),))
        assert source.happened == 1
        stored = await store.load(hand.actor)
        assert stored is not None
        assert stored.state == b"one"
        assert await store.events(hand.actor, 0, 10) == []
        await hand.turn(state=b"two")
        assert store.failure is None
    async with engine.opened() as store:
        stored = await store.load(hand.actor)
        assert stored is not None
        assert stored.state == b"two"


@pytest.mark.parametrize(
    ("name", "kept"), [("storage.commit_lost", b"1"), ("storage.commit_kept", b"2")]
)
async def test_a_commit_without_an_outcome_stops_the_store_until_it_is_opened_again(
    engine: SqliteEngine, name: str, kept: bytes
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"1")
        with faults_from(Failing(name)), pytest.raises(CommitUnknownError):
            await hand.turn(state=b"2")
        with pytest.raises(StoreError, match="stopped"):
            await hand.turn(state=b"3")
        assert isinstance(store.failure, CommitUnknownError)
    async with engine.opened() as store:
        stored = await store.load(hand.actor)
        assert stored is not None
        assert stored.state == kept


async def test_a_failed_read_is_a_typed_error_and_the_next_one_succeeds(
    engine: SqliteEngine,
) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"one")
        with faults_from(Failing("storage.read_fail")), pytest.raises(StoreError, match="I/O"):
            await store.load(hand.actor)
        with faults_from(Failing("storage.corruption")), pytest.raises(CorruptionError):
            await store.load(hand.actor)
        with faults_from(Failing("resource.descriptors")), pytest.raises(StoreError, match="open"):
            await store.stats()
        stored = await store.load(hand.actor)
        assert stored is not None
        assert stored.state == b"one"


@pytest.mark.parametrize(
    "name", ["storage.open_fail", "storage.sync_fail", "migration.schema_fail"]
)
async def test_a_store_that_cannot_be_opened_says_so_and_lets_go_of_its_lock(
    engine: SqliteEngine, name: str
) -> None:
    with faults_from(Failing(name)), pytest.raises(StoreError):
        await engine.open()
    async with engine.opened() as store:
        await Hand(store).turn(state=b"one")
        assert (await store.check()).is_sound


async def test_a_checkpoint_that_fails_costs_nothing(engine: SqliteEngine) -> None:
    source = Failing("storage.checkpoint_fail", times=5)
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=bytes(100_000))
        with faults_from(source):
            await store.compact()
        assert source.happened > 0
        await hand.turn(state=b"two")
        assert (await store.check()).is_sound


@pytest.mark.parametrize(
    ("name", "error"),
    [("storage.blob_disk_full", DiskFullError), ("storage.sync_fail", StoreError)],
)
async def test_a_blob_that_cannot_be_kept_leaves_nothing(
    engine: SqliteEngine, name: str, error: type[KelpieError]
) -> None:
    async with engine.opened() as store:
        with faults_from(Failing(name)), pytest.raises(error):
            store.blobs.put_bytes(b"a blob")
        assert list(store.blobs.digests()) == []
        digest = store.blobs.put_bytes(b"a blob")
        with faults_from(Failing("storage.blob_corruption")), pytest.raises(CorruptionError):
            store.blobs.get(digest)
        assert store.blobs.get(digest) == b"a blob"


@pytest.mark.parametrize("name", ["snapshot.backup_fail", "storage.sync_fail"])
async def test_a_backup_that_breaks_off_is_a_typed_error_and_leaves_nothing(
    engine: SqliteEngine, tmp_path: Path, name: str
) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=b"one")
        with faults_from(Failing(name)), pytest.raises(StoreError, match="Input/output error"):
            await store.backup(tmp_path / "backup")
        assert names_in(tmp_path) == ["store"]
        await store.backup(tmp_path / "backup")
