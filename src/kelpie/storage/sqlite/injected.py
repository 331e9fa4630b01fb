"""What the driver raises, made by hand: for fault points, and only for them."""

from __future__ import annotations

import sqlite3
from typing import Final

_TEXTS: Final = {
    sqlite3.SQLITE_BUSY: ("SQLITE_BUSY", "database is locked"),
    sqlite3.SQLITE_CANTOPEN: ("SQLITE_CANTOPEN", "unable to open database file"),
    sqlite3.SQLITE_FULL: ("SQLITE_FULL", "database or disk is full"),
    sqlite3.SQLITE_IOERR: ("SQLITE_IOERR", "disk I/O error"),
}


def engine_error(code: int) -> sqlite3.OperationalError:
    """Return the error that the driver raises when the engine answers with ``code``."""
    name, text = _TEXTS[code]
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error
