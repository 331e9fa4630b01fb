"""A database without the log of its last session is refused, and nothing else is."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import CorruptionError, DiskFullError, LogMissingError
from kelpie.storage.holder import read_holder
from kelpie.storage.sqlite.log import require_whole_log
from kelpie.storage.sqlite.log_mark import has_log, log_path
from kelpie.storage.sqlite.store import SqliteStore
from tests.contract.store.world import FakeClock, Hand, SeededRng, SqliteEngine, actor_id
from tests.integration.storage.harness import names_in, running

if TYPE_CHECKING:
    from pathlib import Path

VICTIM = "tests.integration.storage.victim"


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


def kill_after(engine: SqliteEngine, lines: int) -> None:
    """Commit in another process until so many commits were acknowledged, and kill it."""
    with running(VICTIM, str(engine.path), "4") as victim:
        assert victim.stdout is not None
        for _ in range(lines + 1):
            assert victim.stdout.readline()
        victim.kill()
        victim.wait()


class BrokenRng(SeededRng):
    """A source of randomness that fails."""

    def bytes(self, count: int) -> bytes:
        raise DiskFullError(f"no {count} bytes")


@pytest.mark.requirement("STORE-LOG")
@pytest.mark.parametrize("is_empty", [False, True], ids=["removed", "emptied"])
@pytest.mark.parametrize("lines", [0, 40], ids=["at once", "later"])
async def test_a_killed_store_without_its_log_is_refused_again_and_again(
    engine: SqliteEngine, lines: int, is_empty: bool
) -> None:
    kill_after(engine, lines)
    log = log_path(engine.path)
    if is_empty:
        log.write_bytes(b"")
    else:
        log.unlink()
    before = engine.path.read_bytes()
    for read_only in (False, True, False):
        with pytest.raises(LogMissingError, match="kelpie store accept-loss") as caught:
            await engine.open(read_only=read_only)
        assert caught.value.fields["log"] == str(log)
        assert str(log) in caught.value.message
        assert read_holder(engine.path) is None
    assert engine.path.read_bytes() == before


@pytest.mark.requirement("STORE-LOG")
async def test_the_log_put_back_makes_the_store_whole_again(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    kill_after(engine, 40)
    aside = log_path(engine.path).rename(tmp_path / "aside")
    with pytest.raises(LogMissingError):
        await engine.open()
    aside.rename(log_path(engine.path))
    async with engine.opened() as store:
        assert (await store.stats()).actors == 4
        assert not store.held


@pytest.mark.requirement("STORE-LOG")
async def test_an_accepted_loss_goes_on_from_the_last_checkpoint_and_is_held(
    engine: SqliteEngine,
) -> None:
    async with engine.opened() as store:
        await Hand(store, "old").turn(state=b"in the file")
        before = (await store.stats()).incarnation
    store = await engine.open()
    await Hand(store, "new").turn(state=b"in the log alone")
    store.abandon()
    log_path(engine.path).unlink()
    accepted = await engine.open(accept_loss=True)
    kept = await accepted.load(actor_id("old"))
    assert kept is not None
    assert kept.state == b"in the file"
    assert await accepted.load(actor_id("new")) is None
    assert accepted.held
    assert (await accepted.stats()).incarnation != before
    await accepted.close()
    async with engine.opened() as again:
        assert again.held


async def test_accepting_a_loss_that_never_was_changes_nothing(engine: SqliteEngine) -> None:
    store = await engine.open()
    await Hand(store).turn(state=b"kept")
    before = (await store.stats()).incarnation
    store.abandon()
    accepted = await engine.open(accept_loss=True)
    assert not accepted.held
    assert (await accepted.stats()).incarnation == before
    assert await accepted.load(actor_id("ada")) is not None
    await accepted.close()


@pytest.mark.requirement("STORE-LOG")
async def test_a_copy_of_a_running_stores_file_alone_is_refused(
    engine: SqliteEngine, tmp_path: Path
) -> None:
    copy = SqliteEngine(tmp_path / "copy")
    copy.rng = engine.rng  # sessions have names of their own
    copy.path.parent.mkdir(parents=True)
    async with engine.opened() as store:
        await Hand(store).turn(state=b"acknowledged")
        shutil.copyfile(engine.path, copy.path)
    with pytest.raises(LogMissingError):
        await copy.open()
    shutil.copyfile(engine.path, copy.path)
    async with copy.opened() as whole:
        assert await whole.load(actor_id("ada")) is not None


async def test_a_store_closed_in_order_is_one_file_and_needs_no_log(engine: SqliteEngine) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=b"kept")
    assert names_in(engine.path.parent) == ["kelpie.db", "kelpie.db.holder"]
    async with engine.opened() as store:
        assert await store.load(actor_id("ada")) is not None


async def test_a_reader_that_outlives_the_holder_leaves_no_commit_in_the_log(
    engine: SqliteEngine,
) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=b"kept")
        reader = await engine.open(read_only=True)
    await reader.close()
    log_path(engine.path).unlink(missing_ok=True)
    async with engine.opened() as store:
        assert await store.load(actor_id("ada")) is not None


@pytest.mark.requirement("STORE-LOG")
async def test_whoever_gives_up_leaves_the_log_that_the_file_needs(engine: SqliteEngine) -> None:
    store = await engine.open()
    await Hand(store).turn(state=b"kept")
    store.abandon()
    assert has_log(engine.path)
    with pytest.raises(DiskFullError):
        await SqliteStore.open(engine.path, clock=FakeClock(), rng=BrokenRng())
    assert has_log(engine.path)
    async with engine.opened() as again:
        assert await again.load(actor_id("ada")) is not None


async def test_a_store_from_before_the_mark_opens_without_its_log(engine: SqliteEngine) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=b"kept")
    with closing(sqlite3.connect(engine.path)) as connection:
        connection.execute("DELETE FROM meta WHERE name = 'log'")
        connection.execute("UPDATE sessions SET ended_ms = NULL")
        connection.commit()
    async with engine.opened() as store:
        assert await store.load(actor_id("ada")) is not None


def make_log(folder: Path) -> tuple[Path, Path]:
    """Make a file whose log holds two transactions, and return its log and the log's index."""
    path = folder / "made.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (value BLOB)")
        connection.execute("INSERT INTO t VALUES (?)", (bytes(1_000),))
        log = log_path(path).read_bytes()
    log_path(path).write_bytes(log)
    index = path.with_name("made.db-shm")
    index.write_bytes(b"")
    return log_path(path), index


@pytest.mark.requirement("STORE-LOG-DAMAGE")
def test_an_index_that_says_nothing_vouches_for_no_transaction_of_the_log(tmp_path: Path) -> None:
    log, index = make_log(tmp_path)
    with pytest.raises(CorruptionError, match="behind frame 0") as caught:
        require_whole_log(tmp_path / "made.db")
    assert caught.value.fields["subject"] == str(log)
    index.unlink()
    require_whole_log(tmp_path / "made.db")
    assert names_in(tmp_path) == ["made.db", "made.db-wal"], "nothing to compare, nothing made"


@pytest.mark.requirement("STORE-LOG-DAMAGE")
def test_a_damaged_last_transaction_counts_as_one_that_was_cut_off(tmp_path: Path) -> None:
    log, _ = make_log(tmp_path)
    whole = log.read_bytes()
    with pytest.raises(CorruptionError):
        require_whole_log(tmp_path / "made.db")
    log.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    require_whole_log(tmp_path / "made.db")
    assert len(log.read_bytes()) == len(whole), "a look changes nothing"
