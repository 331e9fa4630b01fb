"""Connections to the SQLite file, and what the engine's errors mean.

One connection writes and checkpoints; every other one is read-only and cannot checkpoint. That is
what keeps SQLite before 3.51.3 safe from its WAL-reset defect, which needs two connections that
write or checkpoint at the same time.

Source: sqlite.org, "Write-Ahead Logging", section on the WAL-reset bug.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from kelpie.core.errors import CorruptionError, DiskFullError, StoreError, StoreHeldError
from kelpie.core.limits import WAL_CHECKPOINT_PAGES
from kelpie.ports.faults import fault
from kelpie.storage.files import sync_directory
from kelpie.storage.sqlite.injected import engine_error

BUSY_TIMEOUT_MS: Final = 5_000  # for a stranger's transaction; Kelpie itself never contends
_LOG_BYTES_MAX: Final = 64 * 1024 * 1024  # the log file is cut back to this when it starts over
_PRIMARY: Final = 0xFF  # the low byte of an extended result code is its primary code
AUTO_VACUUM_INCREMENTAL: Final = 2
WAL_RESET_FIXED: Final = (3, 51, 3)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the one connection that writes, creating the file readable by its owner only.

    Raises:
        StoreError: The file system cannot give WAL mode and full sync.
        sqlite3.Error: The engine cannot open it; see `translate_error`.
    """
    if fault("storage.open_fail"):
        raise engine_error(sqlite3.SQLITE_CANTOPEN)
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    connection = _connect(path.absolute().as_uri() + "?mode=rw")
    try:
        if path.stat().st_size == 0:
            # Lets `compact` give space back slice by slice, and costs one page in 800 and no
            # measurable time. On a file that has pages already it would write one.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        require_log(path, connection)
        connection.execute("PRAGMA synchronous = FULL")
        # The writer checkpoints between its batches; this is for when its estimate is off.
        connection.execute(f"PRAGMA wal_autocheckpoint = {8 * WAL_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_MAX}")
        connection.execute("PRAGMA cache_size = -65536")
        # What a savepoint keeps aside stays in memory: it is never larger than a batch.
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def require_log(path: Path, connection: sqlite3.Connection) -> None:
    """Switch the file to a write-ahead log.

    Raises:
        StoreError: It cannot have one.
    """
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        message = f"{path} cannot use a write-ahead log (mode {mode}); use a local disk"
        raise StoreError(message, journal_mode=str(mode))


def checkpoint(writer: sqlite3.Connection) -> int:
    """Move what the log holds into the file, and return how many pages the log held.

    Goes as far as open snapshots allow and waits for nobody. A failure costs nothing but time: the
    log keeps everything until a checkpoint succeeds, and the next commit meets the same disk.
    Returns 0 then.
    """
    assert not writer.in_transaction, "a checkpoint stands between transactions"
    try:
        if fault("storage.checkpoint_fail"):
            raise engine_error(sqlite3.SQLITE_IOERR)
        row = writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        fault("crash.during_checkpoint")
    except sqlite3.Error:
        return 0
    return max(int(row[1]), 0)


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can neither write nor checkpoint."""
    connection = _connect(path.absolute().as_uri() + "?mode=ro")
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=BUSY_TIMEOUT_MS / 1_000,
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def primary_code(error: sqlite3.Error) -> int:
    """Return the engine's primary result code, 0 when the error has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & _PRIMARY


def translate_error(error: sqlite3.Error, subject: str) -> StoreError:
    """Return the typed error for an engine error that left nothing behind.

    Args:
        error: What the engine raised.
        subject: What was read or written: an actor, a path.
    """
    match primary_code(error):
        case sqlite3.SQLITE_FULL:
            message = f"no space left for {subject}; free some disk space and try again"
            return DiskFullError(message, subject=subject)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            message = f"{subject} is damaged ({error}); run a check, then restore a backup"
            return CorruptionError(message, subject=subject)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            message = f"another program is writing to the store ({error}); stop it"
            return StoreHeldError(message, subject=subject)
        case _:
            name: str = getattr(error, "sqlite_errorname", type(error).__name__)
            return StoreError(f"{subject}: {error} ({name})", subject=subject, engine=name)


def is_wal_reset_fixed(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Return whether this SQLite release carries the WAL-reset fix for certain."""
    return version >= WAL_RESET_FIXED
