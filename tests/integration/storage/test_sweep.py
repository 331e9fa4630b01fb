"""Blobs that nothing names go; one that anything names, or may come to name, stays."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import ConflictError
from kelpie.core.limits import BLOB_UNNAMED_KEEP_MS, STATE_CHUNK_BYTES
from kelpie.storage.blobs import BlobStore, Swept
from kelpie.storage.records import AuditAppend, EventAppend, KvDelete, KvPut, OutboxRow
from kelpie.storage.sqlite import names
from tests.contract.store.world import Hand, SqliteEngine, actor_id
from tests.integration.storage.harness import names_in

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

OLD_S = 2 * BLOB_UNNAMED_KEEP_MS / 1_000


def age(path: Path) -> None:
    """Make a file look as if nobody had touched it for two graces."""
    now = path.stat().st_mtime
    os.utime(path, (now - OLD_S, now - OLD_S))


def put_old(blobs: BlobStore, text: str) -> Digest:
    digest = blobs.put_bytes(text.encode())
    age(blobs.path(digest))
    return digest


def nothing(_: AbstractSet[Digest]) -> AbstractSet[Digest]:
    return frozenset()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.requirement("STORE-BLOBS")
async def test_compacting_removes_old_blobs_that_no_row_names(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path)
    async with engine.opened() as store:
        kept = {where: put_old(store.blobs, where) for where in ("state", "kv", "key", "event")}
        kept |= {where: put_old(store.blobs, where) for where in ("message", "audit", "piece")}
        gone = [put_old(store.blobs, "never named"), put_old(store.blobs, "named no more")]
        young = store.blobs.put_bytes(b"on its way to a commit")
        hand = Hand(store)
        # The name lies across the border of two pieces.
        filling = bytes(STATE_CHUNK_BYTES - 20)
        await Hand(store, "large").turn(state=filling + kept["piece"].encode() + filling)
        await hand.turn(
            state=b"\x01" + kept["state"].encode() + b"\x02",
            kv=(
                KvPut("k", kept["kv"].encode()),
                KvPut(kept["key"], b""),
                KvPut("l", gone[1].encode()),
            ),
            events=(EventAppend("e", kept["event"].encode()),),
            sends=(
                OutboxRow(sender=hand.actor, receiver=actor_id("b"), body=kept["message"].encode()),
            ),
            audit=(AuditAppend("a", "p", kept["audit"].encode()),),
        )
        await hand.turn(kv=(KvDelete("l"),))
        for digest in kept.values():
            age(store.blobs.path(digest))
        done = await store.compact()
        assert (done.blobs_removed, done.blob_bytes_removed) == (2, len("never namednamed no more"))
        assert set(store.blobs.digests()) == {*kept.values(), young}
        again = await store.compact()
        assert again.blobs_removed == 0
        assert (await store.check()).is_sound


@pytest.mark.requirement("STORE-BLOBS")
def test_what_is_put_or_looked_for_again_meanwhile_stays(blobs: BlobStore) -> None:
    asked, put, gone = (put_old(blobs, name) for name in ("asked", "put", "gone"))

    def find_named(old: AbstractSet[Digest]) -> AbstractSet[Digest]:
        assert old == {asked, put, gone}
        assert blobs.exists(asked)
        assert blobs.put_bytes(b"put") == put
        return frozenset()

    assert blobs.sweep(find_named) == Swept(1, len(b"gone"))
    assert set(blobs.digests()) == {asked, put}
    assert blobs.get(put) == b"put"


def test_the_rows_are_not_read_when_no_blob_is_old(blobs: BlobStore) -> None:
    def find_named(_: AbstractSet[Digest]) -> AbstractSet[Digest]:
        raise AssertionError("a large store would be read for nothing")

    assert blobs.sweep(find_named) == Swept(0, 0)
    digest = blobs.put_bytes(b"young")
    assert blobs.sweep(find_named) == Swept(0, 0)
    assert blobs.exists(digest)


def test_what_interrupted_puts_left_goes_once_it_is_old(blobs: BlobStore) -> None:
    blobs.put_bytes(b"x")
    incoming = blobs.root / "incoming"
    for name in ("old", "young"):
        (incoming / name).write_bytes(b"half of a bl")
    age(incoming / "old")
    assert blobs.sweep(nothing) == Swept(0, 0)
    assert names_in(incoming) == ["young"]


@pytest.mark.requirement("STORE-BLOBS")
async def test_nothing_is_removed_while_a_backup_is_made(tmp_path: Path) -> None:
    async with SqliteEngine(tmp_path).opened() as store:
        digest = put_old(store.blobs, "in the snapshot of the backup")
        with BlobStore(store.blobs.root).kept():  # as another process would
            with pytest.raises(ConflictError, match="backup"):
                await store.compact()
            assert store.blobs.path(digest).exists()
        assert (await store.compact()).blobs_removed == 1


def test_a_sweep_that_fails_to_read_the_rows_removes_nothing(blobs: BlobStore) -> None:
    digest = put_old(blobs, "named by a row that cannot be read")

    def find_named(_: AbstractSet[Digest]) -> AbstractSet[Digest]:
        raise OSError("the disk fails")

    with pytest.raises(OSError, match="the disk fails"):
        blobs.sweep(find_named)
    assert blobs.path(digest).exists()
    assert blobs.sweep(nothing).blobs == 1
    assert not blobs.exists(digest)
    assert blobs.put_bytes(b"named by a row that cannot be read") == digest_bytes(
        b"named by a row that cannot be read"
    )


def test_a_table_of_numbers_alone_names_nothing_and_hides_nothing() -> None:
    named, other = digest_bytes(b"named"), digest_bytes(b"other")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE numbers (n INTEGER)")
        connection.execute("INSERT INTO numbers VALUES (1)")
        connection.execute("CREATE TABLE state_chunks (actor TEXT, chunk INTEGER, data BLOB)")
        connection.execute("CREATE TABLE texts (n INTEGER, value TEXT)")
        connection.execute("INSERT INTO texts VALUES (1, ?)", (f"see {named}",))
        assert names.find_named(connection, {named, other}) == {named}
        assert not connection.in_transaction
