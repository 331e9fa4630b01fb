"""Group commit: order, grouping, back-pressure, and what happens when the engine fails inside."""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import Executor, Future
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from kelpie.core.errors import (
    CommitUnknownError,
    ConflictError,
    KelpieError,
    OverloadedError,
    StoreError,
    StoreHeldError,
)
from kelpie.core.limits import (
    COMMIT_BATCH_BYTES_MAX,
    COMMIT_BATCH_ROWS_MAX,
    COMMIT_QUEUE_BYTES_MAX,
    COMMIT_QUEUE_DEPTH_MAX,
    MIB,
    SHARD_COUNT,
    WAL_CHECKPOINT_PAGES,
)
from kelpie.storage.holder import read_holder
from kelpie.storage.records import KvPut
from kelpie.storage.sqlite.batch import BatchResult, run_batch
from kelpie.storage.sqlite.engine import (
    connect_reader,
    connect_writer,
    is_wal_reset_fixed,
    require_log,
)
from kelpie.storage.sqlite.migrations import migrate
from kelpie.storage.sqlite.transaction import Member, Transaction
from kelpie.storage.sqlite.writer import GroupWriter
from tests.contract.store.world import Hand, SqliteEngine, actor_id
from tests.integration.storage.harness import names_in
from tests.waiting import eventually_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")


class HeldExecutor(Executor):
    """Runs each job when the test says so, on the loop's own thread."""

    def __init__(self) -> None:
        self.jobs: list[tuple[bool, Callable[[], None]]] = []

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except (ArithmeticError, OSError) as error:
                future.set_exception(error)

        self.jobs.append((fn is run_batch, run))
        return future


async def run_jobs(executor: HeldExecutor) -> int:
    """Run everything that was handed over until nothing follows; return how many batches ran."""
    count = 0
    for _ in range(3):
        await asyncio.sleep(0)
    while executor.jobs:
        is_batch, run = executor.jobs.pop(0)
        run()
        count += is_batch
        for _ in range(3):
            await asyncio.sleep(0)
    return count


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(connect_writer(tmp_path / "db")) as writer:
        migrate(writer)
        writer.execute("CREATE TABLE log (line)")
        yield writer


def log(line: object) -> Member:
    def member(transaction: Transaction) -> object:
        transaction.execute("INSERT INTO log VALUES (?)", (line,))
        return line

    return member


def refuse(transaction: Transaction) -> None:
    raise ConflictError("refused")


def write_then_break(transaction: Transaction) -> None:
    transaction.execute("INSERT INTO log VALUES ('half')")
    transaction.execute("INSERT INTO meta VALUES ('x', NULL)")


def make_mistake(transaction: Transaction) -> None:
    transaction.execute("INSERT INTO log VALUES ('half')")
    raise ZeroDivisionError


def lines(connection: sqlite3.Connection) -> list[object]:
    return [line for (line,) in connection.execute("SELECT line FROM log ORDER BY rowid")]


async def test_what_gathers_behind_a_batch_shares_the_next_one(
    connection: sqlite3.Connection,
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    futures = [writer.submit(log(number), 1) for number in range(3)]
    await asyncio.sleep(0)
    futures += [writer.submit(log(number), 1) for number in range(3, 100)]
    writer.check_invariants()
    assert await run_jobs(executor) == 2
    assert [future.result() for future in futures] == lines(connection) == list(range(100))


@pytest.mark.parametrize(
    ("count", "size_bytes", "batches"),
    [(COMMIT_BATCH_ROWS_MAX + 1, 1, 2), (9, 8 * MIB, 3), (1, COMMIT_BATCH_BYTES_MAX + 1, 1)],
)
async def test_a_batch_is_bounded_in_rows_and_bytes(
    connection: sqlite3.Connection, count: int, size_bytes: int, batches: int
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    futures = [writer.submit(log(number), size_bytes) for number in range(count)]
    assert await run_jobs(executor) == batches
    assert [future.result() for future in futures] == lines(connection) == list(range(count))


@pytest.mark.parametrize(
    ("count", "size_bytes"), [(COMMIT_QUEUE_DEPTH_MAX, 1), (4, COMMIT_QUEUE_BYTES_MAX // 4)]
)
async def test_a_full_queue_pushes_back(
    connection: sqlite3.Connection, count: int, size_bytes: int
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    futures = [writer.submit(log(number), size_bytes) for number in range(count)]
    with pytest.raises(OverloadedError):
        await writer.submit(log("too much"), 1)
    writer.check_invariants()
    await run_jobs(executor)
    assert all(future.done() for future in futures)
    assert "too much" not in lines(connection)
    later = writer.submit(log("later"), 1)
    await run_jobs(executor)
    assert later.result() == lines(connection)[-1]


async def test_a_checkpoint_comes_after_its_batch_was_answered_and_bounds_the_log(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    for _ in range(40):
        future = writer.submit(log(bytes(MIB)), MIB)
        await asyncio.sleep(0)
        is_batch, run = executor.jobs.pop(0)
        assert is_batch
        run()
        for _ in range(3):
            await asyncio.sleep(0)
        # Whatever follows is handed over when the answer is there.
        assert future.done()
        while executor.jobs:
            is_batch, run = executor.jobs.pop(0)
            assert not is_batch
            writer.check_invariants()
            run()
            for _ in range(3):
                await asyncio.sleep(0)
    assert len(lines(connection)) == 40
    page_bytes = 4_096
    assert (tmp_path / "db-wal").stat().st_size < 3 * WAL_CHECKPOINT_PAGES * page_bytes
    await writer.close()


async def test_closing_finishes_what_was_queued_and_takes_nothing_new(
    connection: sqlite3.Connection,
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    kept = writer.submit(log("kept"), 1)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.close())
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="closed"):
            await writer.submit(log("late"), 1)
        await run_jobs(executor)
    assert kept.result() == "kept"
    assert lines(connection) == ["kept"]


async def test_abandoning_cancels_what_had_not_begun(connection: sqlite3.Connection) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    begun = writer.submit(log("begun"), 1)
    await asyncio.sleep(0)
    waiting = writer.submit(log("waiting"), 1)
    writer.abandon()
    await run_jobs(executor)
    assert begun.result() == "begun"
    assert waiting.cancelled()
    assert lines(connection) == ["begun"]


@pytest.mark.requirement("K-25", "STORE-ATOMIC")
async def test_a_defect_in_one_commit_leaves_nothing_half_written(
    connection: sqlite3.Connection,
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    failed = writer.submit(make_mistake, 1)
    await run_jobs(executor)
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await failed
    following = writer.submit(log("next"), 1)
    await run_jobs(executor)
    assert [following.result()] == lines(connection) == ["next"]
    assert writer.failure is None


@pytest.mark.requirement("STORE-UNKNOWN-COMMIT")
async def test_after_an_unknown_outcome_everything_waiting_fails_unwritten(
    connection: sqlite3.Connection,
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    # A deferred constraint is checked by COMMIT itself: the engine's one way to fail just there.
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(
        "CREATE TABLE child (x REFERENCES meta (name) DEFERRABLE INITIALLY DEFERRED)"
    )

    def orphan(transaction: Transaction) -> None:
        transaction.execute("INSERT INTO child VALUES ('nobody')")

    unknown = [writer.submit(orphan, 1), writer.submit(refuse, 1), writer.submit(log("same"), 1)]
    await asyncio.sleep(0)
    waiting, cancelled = writer.submit(log("waiting"), 1), writer.submit(log("gone"), 1)
    cancelled.cancel()
    await run_jobs(executor)
    for future, kind in zip(
        [*unknown, waiting],
        [CommitUnknownError, ConflictError, CommitUnknownError, StoreError],
        strict=True,
    ):
        with pytest.raises(kind):
            await future
    with pytest.raises(StoreError, match="stopped"):
        await writer.submit(log("later"), 1)
    assert isinstance(writer.failure, CommitUnknownError)
    assert lines(connection) == []
    await writer.close()


def kinds(result: BatchResult) -> list[object]:
    return [type(o) if isinstance(o, KelpieError) else o for o in result.outcomes]


def test_a_refusal_costs_the_others_nothing(connection: sqlite3.Connection) -> None:
    result = run_batch(connection, [log(1), refuse, log(2)], None)
    assert kinds(result) == [1, ConflictError, 2]
    assert lines(connection) == [1, 2]


def test_a_member_that_breaks_the_engine_fails_alone(connection: sqlite3.Connection) -> None:
    result = run_batch(connection, [log(1), write_then_break, log(2)], lambda _: True)
    assert kinds(result) == [1, StoreError, 2]
    assert lines(connection) == [1, 2]
    assert result.fatal is None


def test_housekeeping_that_fails_costs_no_commit(connection: sqlite3.Connection) -> None:
    def fail(transaction: Transaction) -> bool:
        transaction.execute("INSERT INTO meta VALUES ('x', NULL)")
        return True

    assert kinds(run_batch(connection, [log(1), refuse], fail)) == [1, ConflictError]
    assert run_batch(connection, [], fail) == BatchResult([], has_more=False)
    assert lines(connection) == [1]


def test_members_run_alone_stop_at_an_unknown_outcome(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(
        "CREATE TABLE child (x REFERENCES meta (name) DEFERRABLE INITIALLY DEFERRED)"
    )

    def orphan(transaction: Transaction) -> None:
        transaction.execute("INSERT INTO child VALUES ('nobody')")

    result = run_batch(connection, [write_then_break, orphan, log(1)], lambda _: False)
    assert kinds(result) == [StoreError, CommitUnknownError, CommitUnknownError]
    assert isinstance(result.fatal, CommitUnknownError)
    assert lines(connection) == []


def test_a_strangers_lock_is_named_and_nothing_is_lost(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    connection.execute("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        assert kinds(run_batch(connection, [log(1), log(2)], None)) == [StoreHeldError] * 2
    assert kinds(run_batch(connection, [log(1)], None)) == [1]


def test_a_reader_cannot_write(connection: sqlite3.Connection, tmp_path: Path) -> None:
    with (
        closing(connect_reader(tmp_path / "db")) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader.execute("INSERT INTO log VALUES (1)")


def test_a_place_that_cannot_have_a_log_is_refused(tmp_path: Path) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as memory,
        pytest.raises(StoreError, match="use a local disk"),
    ):
        require_log(tmp_path, memory)


@pytest.mark.parametrize(
    ("version", "expected"), [((3, 40, 1), False), ((3, 51, 2), False), ((3, 51, 3), True)]
)
def test_only_releases_with_the_fix_count_as_fixed(
    version: tuple[int, int, int], expected: bool
) -> None:
    assert is_wal_reset_fixed(version) is expected


async def test_a_closed_store_refuses_by_name(tmp_path: Path) -> None:
    store = await SqliteEngine(tmp_path).open()
    hand = Hand(store)
    commit = hand.prepare()
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.commit(commit)
    with pytest.raises(StoreError, match="closed"):
        await store.stats()
    with pytest.raises(StoreError, match="closed"):
        await store.load(hand.actor)


async def test_an_abandoned_store_can_be_taken_at_once(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path)
    store = await engine.open()
    hand = Hand(store)
    await hand.turn(state=b"durable")
    on_its_way = store.commit(Hand(store, "bob").prepare())  # begins at once, being alone
    lost = store.commit(hand.prepare(state=b"lost", kv=(KvPut("k", b""),)))
    store.abandon()
    store.abandon()
    assert (await on_its_way).version == 1
    with pytest.raises(asyncio.CancelledError):
        await lost
    async with engine.opened() as again:
        loaded = await again.load(actor_id("ada"))
        assert loaded is not None
        assert loaded.state == b"durable"


async def test_an_opening_nobody_waits_for_keeps_no_lock(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path)
    engine.path.parent.mkdir()
    opening = asyncio.ensure_future(engine.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await eventually_async(lambda: is_free(engine.path), within_s=10, what="the lock is let go")
    async with engine.opened() as store:
        assert len(store.grants()) == SHARD_COUNT


async def is_free(path: Path) -> bool:
    return path.name in names_in(path.parent) and read_holder(path) is None


async def test_a_close_cut_short_still_lets_go_of_the_lock(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path)
    store = await engine.open()
    hand = Hand(store)
    commits = [hand.prepare(expected_version=version) for version in range(2_000)]
    futures = [asyncio.ensure_future(store.commit(commit)) for commit in commits]
    closing_store = asyncio.ensure_future(store.close())
    await futures[0]
    closing_store.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing_store
    assert read_holder(engine.path) is None
    kept = [f for f in futures if f.done() and not f.cancelled() and not f.exception()]
    async with engine.opened() as again:
        loaded = await again.load(hand.actor)
        assert loaded is not None
        assert loaded.version >= len(kept) >= 1


async def test_the_engine_report_names_version_mode_and_latency(tmp_path: Path) -> None:
    async with SqliteEngine(tmp_path).opened() as store:
        report = await store.engine_report()
    assert report.sqlite_version == sqlite3.sqlite_version
    assert (report.journal_mode, report.synchronous) == ("wal", "full")
    assert 0 < report.fsync_us_median <= report.fsync_us_max
    assert names_in(tmp_path / "store") == ["kelpie.db", "kelpie.db.holder"]


async def test_the_writing_connection_is_lent_between_batches_alone(
    connection: sqlite3.Connection,
) -> None:
    executor = HeldExecutor()
    writer = GroupWriter(connection, executor)
    await run_jobs(executor)
    lent = [writer.free_connection]
    kept = writer.submit(log("kept"), 1)
    await asyncio.sleep(0)
    assert executor.jobs, "the batch runs"
    lent.append(writer.free_connection)
    await run_jobs(executor)
    assert kept.result() == "kept"
    lent.append(writer.free_connection)
    await writer.close()
    lent.append(writer.free_connection)
    assert lent == [connection, None, connection, None]
