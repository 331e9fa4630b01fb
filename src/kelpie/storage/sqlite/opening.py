"""Opening a file: lock, schema, session, shards. All of it, or nothing stays behind.

Runs in an executor; never touches asyncio.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kelpie.core.errors import (
    CorruptionError,
    LogMissingError,
    NotFoundError,
    StoreError,
    StoreVersionError,
)
from kelpie.core.ids import derive_uuid
from kelpie.core.limits import SHARD_COUNT
from kelpie.ports.clock import Clock
from kelpie.ports.faults import fault
from kelpie.ports.rng import Rng
from kelpie.storage.cluster import NODE_NAME_DEFAULT
from kelpie.storage.holder import HolderLock
from kelpie.storage.records import ShardGrant
from kelpie.storage.sqlite.copying import require_unsealed
from kelpie.storage.sqlite.engine import (
    checkpoint,
    connect_reader,
    connect_writer,
    translate_error,
)
from kelpie.storage.sqlite.log import require_whole_log
from kelpie.storage.sqlite.log_mark import has_log, mark_log, require_database, require_log_of
from kelpie.storage.sqlite.migrations import SCHEMA_VERSION, migrate, read_version


class Opened(NamedTuple):
    """What opening gives: two connections, the lock, and what this session owns.

    ``writer`` and ``lock`` are None for a store that was opened read-only.
    """

    reader: sqlite3.Connection
    writer: sqlite3.Connection | None
    lock: HolderLock | None
    session: str
    grants: tuple[ShardGrant, ...]
    held: bool


class Holder(NamedTuple):
    """Who opens a store for writing.

    Attributes:
        address: Where this process listens.
        node: The node that has the store for itself; empty when it is opened for nodes that join
            and claim their shards.
    """

    address: str = ""
    node: str = NODE_NAME_DEFAULT


def open_for_writing(
    path: Path, *, clock: Clock, rng: Rng, holder: Holder, accept_loss: bool = False
) -> Opened:
    """Take the store at ``path``, creating it if there is none.

    With ``accept_loss`` a store whose log is missing becomes a new incarnation, held as after a
    restore: what was lost may have been carried out.

    Raises:
        LogMissingError: Its newest commits were in a log that is gone.
        StoreHeldError: Another process has it.
        StoreVersionError: It is newer than this program, or not a store.
        CorruptionError: The engine found damage.
        StoreError: The engine cannot open it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = HolderLock.acquire(path, address=holder.address)
    try:
        require_database(path)
        return _open_locked(
            path, lock, clock=clock, rng=rng, holder=holder, accept_loss=accept_loss
        )
    except sqlite3.Error as error:
        lock.release()
        raise translate_error(error, str(path)) from error
    except OSError as error:
        lock.release()
        raise StoreError(f"{path} cannot be opened ({error.strerror}); check the disk") from error
    except BaseException:
        lock.release()
        raise


def _open_locked(
    path: Path, lock: HolderLock, *, clock: Clock, rng: Rng, holder: Holder, accept_loss: bool
) -> Opened:
    is_log_there = has_log(path)
    writer = connect_writer(path)
    reader = None
    try:
        reader = connect_reader(path)
        # Whatever fails from here on, the reader goes last and leaves the log: see `log_mark`.
        read_version(reader)
        require_whole_log(path)
        lost = None if is_log_there else _find_loss(path, reader)
        if lost is not None and not accept_loss:
            raise lost
        migrate(writer)
        require_unsealed(writer, str(path))
        if lost is not None:
            begin_incarnation(writer, clock.now_ms(), derive_uuid(rng.bytes(16), 0))
        session = f"session-{derive_uuid(rng.bytes(16), 0)}"
        incarnation = derive_uuid(rng.bytes(16), 0)
        grants = take_over(writer, session, clock.now_ms(), incarnation, holder=holder)
        held = is_held(writer)
        fault("crash.while_opening")
        checkpoint(writer)
    except BaseException:
        writer.close()
        if reader is not None:
            reader.close()
        raise
    return Opened(reader, writer, lock, session, grants, held)


def _find_loss(path: Path, connection: sqlite3.Connection) -> LogMissingError | None:
    try:
        require_log_of(path, connection)
    except LogMissingError as error:
        return error
    return None


def take_over(
    writer: sqlite3.Connection,
    session: str,
    now_ms: int,
    incarnation: str,
    *,
    holder: Holder = Holder(),  # noqa: B008  it is immutable
) -> tuple[ShardGrant, ...]:
    """Begin a session, in one transaction.

    A node that has the store for itself ends every earlier session, raises every epoch and owns
    every shard. Whoever opens it for other nodes owns none, and ends only sessions without a lease.
    ``incarnation`` names the store if it has no name yet.
    """
    assert session, "a session has a name"
    writer.execute("BEGIN IMMEDIATE")
    try:
        _begin_session(writer, session, now_ms, holder)
        writer.execute("INSERT OR IGNORE INTO meta VALUES ('incarnation', ?)", (incarnation,))
        if holder.node:
            writer.executemany(
                "INSERT INTO shards (shard, epoch, session) VALUES (?, 1, ?) ON CONFLICT (shard)"
                " DO UPDATE SET epoch = epoch + 1, session = excluded.session",
                ((shard, session) for shard in range(SHARD_COUNT)),
            )
        else:
            _free_shards(writer)
        rows = writer.execute("SELECT shard, epoch FROM shards ORDER BY shard").fetchall()
        _require_shards(rows)
        writer.execute("COMMIT")
    finally:
        if writer.in_transaction:
            writer.execute("ROLLBACK")
    assert min(row[1] for row in rows) >= 1, "an epoch counts take-overs"
    return tuple(ShardGrant(*row) for row in rows) if holder.node else ()


def _begin_session(writer: sqlite3.Connection, session: str, now_ms: int, holder: Holder) -> None:
    ended = "UPDATE sessions SET ended_ms = ?, state = 'stopped' WHERE ended_ms IS NULL"
    writer.execute(ended if holder.node else f"{ended} AND ttl_ms = 0", (now_ms,))
    writer.execute(
        "INSERT INTO sessions (session, started_ms, name, address, state) VALUES (?, ?, ?, ?, ?)",
        (session, now_ms, holder.node, holder.address, "running" if holder.node else "stopped"),
    )
    mark_log(writer, session)


def _free_shards(writer: sqlite3.Connection) -> None:
    """Free the shards of sessions that have ended, and make those that are new."""
    writer.execute(
        "UPDATE shards SET epoch = epoch + 1, session = '' WHERE session != '' AND session NOT IN"
        " (SELECT session FROM sessions WHERE ended_ms IS NULL)"
    )
    writer.executemany(
        "INSERT OR IGNORE INTO shards (shard, epoch, session) VALUES (?, 1, '')",
        ((shard,) for shard in range(SHARD_COUNT)),
    )


def begin_incarnation(connection: sqlite3.Connection, now_ms: int, incarnation: str) -> None:
    """Set a store apart from the one it was, in one transaction: new name, new epochs, held."""
    assert incarnation, "an incarnation has a name"
    connection.execute("BEGIN IMMEDIATE")
    query = "INSERT OR REPLACE INTO meta SELECT 'origin', value FROM meta WHERE name = ?"
    connection.execute(query, ("incarnation",))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('incarnation', ?)", (incarnation,))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('held', ?)", (str(now_ms),))
    connection.execute("UPDATE shards SET epoch = epoch + 1, session = ''")
    connection.execute("UPDATE sessions SET ended_ms = ? WHERE ended_ms IS NULL", (now_ms,))
    connection.execute("COMMIT")
    assert not connection.in_transaction, "the new incarnation is durable"


def _require_shards(rows: Sequence[tuple[object, object]]) -> None:
    """Return if the rows are those of every shard, with epochs that can be.

    Raises:
        CorruptionError: One is missing, doubled or malformed.
    """
    is_whole = [shard for shard, _ in rows] == list(range(SHARD_COUNT))
    if not is_whole or not all(isinstance(epoch, int) and epoch >= 1 for _, epoch in rows):
        message = "the store's table of shards is damaged; run a check, then restore a backup"
        raise CorruptionError(message, subject="shards")


def end_session(writer: sqlite3.Connection, session: str, now_ms: int) -> None:
    """Write down that the session ended in order. A crash is noticed by the next one instead."""
    query = (
        "UPDATE sessions SET ended_ms = ?, state = 'stopped' WHERE session = ? AND ended_ms IS NULL"
    )
    assert session, "only a store open for writing has a session"
    ended = writer.execute(query, (now_ms, session)).rowcount
    assert ended == 1, "another session took over a store that this one held"


def open_for_reading(path: Path) -> Opened:
    """Open an existing store beside its holder, or without one, and change nothing in it.

    Raises:
        NotFoundError: There is no file.
        StoreVersionError: Its schema is not the one this program reads.
        LogMissingError: Its newest commits were in a log that is gone.
        CorruptionError: The engine found damage.
    """
    if not path.exists():
        raise NotFoundError("store", str(path))
    is_log_there = has_log(path)
    try:
        reader = connect_reader(path)
        try:
            require_current(reader)
            if not is_log_there:
                require_log_of(path, reader)
            held = is_held(reader)
        except BaseException:
            reader.close()
            raise
    except sqlite3.Error as error:
        raise translate_error(error, str(path)) from error
    return Opened(reader, None, None, "", (), held)


def require_current(connection: sqlite3.Connection) -> None:
    """Return if the file has this program's schema.

    Raises:
        StoreVersionError: It has another.
    """
    version = read_version(connection)
    if version != SCHEMA_VERSION:
        raise StoreVersionError(
            f"the store has schema {version}, reading needs {SCHEMA_VERSION}; "
            "open it for writing once to migrate it",
            found=version,
            known=SCHEMA_VERSION,
        )


def is_held(connection: sqlite3.Connection) -> bool:
    """Return whether the store waits for a release after a restore."""
    query = "SELECT 1 FROM meta WHERE name = 'held'"
    return connection.execute(query).fetchone() is not None


def read_shards(connection: sqlite3.Connection) -> Sequence[int]:
    """Return the shards that have an audit chain, in order."""
    query = "SELECT DISTINCT shard FROM audit ORDER BY shard"
    return [int(shard) for (shard,) in connection.execute(query)]
