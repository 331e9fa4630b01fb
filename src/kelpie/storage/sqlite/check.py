"""Care: what is in the file, whether it is whole, and what the engine and the disk are.

Functions over a read-only connection, for an executor's thread; a check reads the whole file.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.core.errors import ConflictError, CorruptionError
from kelpie.ports.clock import Clock
from kelpie.storage.audit import AuditHead, verify_chain
from kelpie.storage.decode import AUDIT_COLUMNS, audit_record
from kelpie.storage.protocol import StoreStats
from kelpie.storage.records import AuditRecord
from kelpie.storage.soundness import (
    PROBLEMS_MAX,
    SEALED,
    CheckReport,
    Problem,
    Report,
    compare_body,
)
from kelpie.storage.sqlite.engine import (
    AUTO_VACUUM_INCREMENTAL,
    is_wal_reset_fixed,
    translate_error,
)
from kelpie.storage.sqlite.migrations import read_version
from kelpie.storage.sqlite.opening import is_held, read_shards

_FSYNC_COUNT: Final = 20


class EngineReport(NamedTuple):
    """The engine and the disk below it, for `doctor`. Latencies are in microseconds."""

    sqlite_version: str
    wal_reset_fixed: bool
    journal_mode: str
    synchronous: str
    fsync_us_median: int
    fsync_us_max: int


def check_store(connection: sqlite3.Connection) -> CheckReport:
    """Read everything: the engine's structures, every checksum, every audit chain.

    Reads one snapshot, beside a running writer.
    """
    heads: list[AuditHead] = []
    report = Report()
    for problem in _find_problems(connection, heads):
        report.add(problem)
        if report.is_full:
            break
    return report.close(heads)


def _find_problems(connection: sqlite3.Connection, heads: list[AuditHead]) -> Iterator[Problem]:
    try:
        connection.execute("BEGIN")
        for (line,) in connection.execute(f"PRAGMA integrity_check({PROBLEMS_MAX})"):
            if line != "ok":
                yield Problem(f"engine: {line}")
        yield from _find_damaged_states(connection)
        for table, actor, body in SEALED:
            yield from _find_damaged_bodies(connection, table, actor, body)
        for shard in read_shards(connection):
            try:
                heads.append(verify_chain(_chain(connection, shard), shard=shard))
            except CorruptionError as error:
                yield Problem(error.message)
    except sqlite3.Error as error:
        yield Problem(translate_error(error, "the store").message)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _find_damaged_states(connection: sqlite3.Connection) -> Iterator[Problem]:
    for actor, checksum, chunks, inline in connection.execute(
        "SELECT actor, checksum, chunks, state FROM actors"
    ):
        query = "SELECT data FROM state_chunks WHERE actor = ? ORDER BY chunk"
        state = inline
        if chunks:
            state = b"".join(data for (data,) in connection.execute(query, (actor,)))
        yield from compare_body(actor, checksum, state, actor)


def _find_damaged_bodies(
    connection: sqlite3.Connection, table: str, actor: str, body: str
) -> Iterator[Problem]:
    query = f"SELECT {actor}, checksum, {body} FROM {table}"
    for name, checksum, data in connection.execute(query):
        yield from compare_body(f"a row of {table} of {name}", checksum, data, name)


def _chain(connection: sqlite3.Connection, shard: int) -> Iterator[AuditRecord]:
    query = f"SELECT {AUDIT_COLUMNS} FROM audit WHERE shard = ? ORDER BY sequence"
    return map(audit_record, connection.execute(query, (shard,)))


def read_stats(connection: sqlite3.Connection, path: Path) -> StoreStats:
    """Return counts and sizes; scans indexes, so its cost grows with the store."""

    def count(query: str) -> int:
        (value,) = connection.execute(query).fetchone()
        return int(value)

    meta = "SELECT value FROM meta WHERE name = 'incarnation'"
    (incarnation,) = connection.execute(meta).fetchone()
    sizes = [path, path.with_name(path.name + "-wal")]
    return StoreStats(
        actors=count("SELECT count(*) FROM actors WHERE tombstoned = 0"),
        effects_open=count("SELECT count(*) FROM effects WHERE is_open"),
        outbox=count("SELECT count(*) FROM outbox"),
        reminders=count("SELECT count(*) FROM reminders"),
        events=count("SELECT count(*) FROM events"),
        dead_letters=count("SELECT count(*) FROM dead_letters"),
        size_bytes=sum(file.stat().st_size for file in sizes if file.exists()),
        incarnation=incarnation,
        held=is_held(connection),
        schema_version=read_version(connection),
    )


def require_compactable(connection: sqlite3.Connection) -> int:
    """Return the count of free pages in a file that can give them back.

    Raises:
        ConflictError: It cannot: it was made without the bookkeeping.
    """
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    if mode != AUTO_VACUUM_INCREMENTAL:
        message = "this store cannot be compacted in place; back it up and restore it, which can"
        raise ConflictError(message, auto_vacuum=int(mode))
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(free)


def report_engine(writer: sqlite3.Connection, directory: Path, clock: Clock) -> EngineReport:
    """Return what the engine is set to, and how long ``directory``'s disk takes to sync.

    ``writer`` must be idle: its settings are asked, nothing is written through it.
    """
    (mode,) = writer.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = writer.execute("PRAGMA synchronous").fetchone()
    samples = sorted(measure_fsync(directory, clock))
    return EngineReport(
        sqlite_version=sqlite3.sqlite_version,
        wal_reset_fixed=is_wal_reset_fixed(),
        journal_mode=mode,
        synchronous=("off", "normal", "full", "extra")[synchronous],
        fsync_us_median=samples[len(samples) // 2],
        fsync_us_max=samples[-1],
    )


def measure_fsync(directory: Path, clock: Clock) -> list[int]:
    """Return the microseconds that each of 20 syncs of a 4 KiB append took."""
    samples: list[int] = []
    path = directory / f".fsync-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(_FSYNC_COUNT):
            os.write(descriptor, bytes(4_096))
            begin_ns = clock.boot_ns()
            os.fsync(descriptor)
            samples.append((clock.boot_ns() - begin_ns) // 1_000)
    finally:
        os.close(descriptor)
        path.unlink()
    assert len(samples) == _FSYNC_COUNT, "every sync was measured"
    return samples
