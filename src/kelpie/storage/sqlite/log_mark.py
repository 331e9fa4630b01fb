"""The mark that tells whether a database's log belongs beside it.

What was committed last lies in the write-ahead log alone, until a checkpoint. The engine takes a
database whose log was removed for a sound one, and goes on from the last checkpoint. So each
session leaves its name in the database file itself before its first commit is acknowledged, and
ends in order only after everything is in that file. A file that names a session which never ended
therefore needs its log.

Invariants: the mark is in the file before the session acknowledges anything, since opening ends
with a checkpoint; the log is on the disk before the mark is, since a checkpoint moves what the log
holds; a session that does not end in order leaves its log behind, whoever closes it. No commit pays
for this.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kelpie.core.errors import CorruptionError, LogMissingError
from kelpie.storage.sqlite.migrations import read_version

_HEADER_BYTES: Final = 32  # of a log; it is this long as soon as it ever held a page


def log_path(store: Path) -> Path:
    """Return the log that the engine keeps beside the database ``store``."""
    return store.with_name(f"{store.name}-wal")


def has_log(store: Path) -> bool:
    """Return whether there is a log that ever held a page."""
    return _size_bytes(log_path(store)) >= _HEADER_BYTES


def require_database(store: Path) -> None:
    """Refuse a log without its database: the engine would throw the log away and begin anew.

    Raises:
        CorruptionError: The database is missing or empty, and its log is not.
    """
    log = log_path(store)
    if _size_bytes(log) and not _size_bytes(store):
        message = f"{store} is missing or empty but its log {log.name} is not; restore a backup"
        raise CorruptionError(message, subject=str(store))


def require_log_of(store: Path, connection: sqlite3.Connection) -> None:
    """Refuse a database without the log that its last session left.

    Args:
        store: The database file; `has_log` said no before ``connection`` read anything.
        connection: Open on it; nothing is written through it.

    Raises:
        LogMissingError: The last session did not end in order, and its log is gone.
    """
    if read_version(connection) == 0:
        return
    session = _open_session(connection)
    # Looked at again: a holder that began meanwhile has marked the file through a log of its own.
    if session is None or has_log(store):
        return
    written = datetime.fromtimestamp(store.stat().st_mtime, tz=UTC).isoformat(timespec="seconds")
    log = log_path(store)
    raise LogMissingError(
        f"{log} is missing, and {store.name} was not closed in order: every commit after its last "
        f"checkpoint, at {written}, is lost with it. Put the log back, restore a backup, or accept "
        'the loss with "kelpie store accept-loss"',
        store=str(store),
        log=str(log),
        checkpoint=written,
        session=session,
    )


def mark_log(writer: sqlite3.Connection, session: str) -> None:
    """Name ``session`` as the one whose log belongs to the file; part of its first transaction."""
    assert session, "a session has a name"
    assert writer.in_transaction, "marked together with the session's beginning"
    writer.execute("INSERT OR REPLACE INTO meta VALUES ('log', ?)", (session,))


def _open_session(connection: sqlite3.Connection) -> str | None:
    """Return the session that marked the file, unless it ended in order."""
    row = connection.execute(
        "SELECT s.session FROM meta m JOIN sessions s ON s.session = m.value"
        " WHERE m.name = 'log' AND s.ended_ms IS NULL"
    ).fetchone()
    return str(row[0]) if row else None


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
