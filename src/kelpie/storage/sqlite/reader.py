"""The reading connection, and how a read fails.

Reads run on the event loop's thread: each is one short statement, or a few inside one snapshot. In
WAL mode they neither wait for the writer nor hold it up, and see only what is durable. What takes
longer runs aside, on a connection and a thread of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from kelpie.ports.clock import Clock
from kelpie.ports.faults import fault
from kelpie.storage.decode import Row
from kelpie.storage.sql.reader import SqlReader
from kelpie.storage.sqlite.engine import connect_reader, translate_error
from kelpie.storage.sqlite.injected import engine_error

T = TypeVar("T")


class SqliteReader(SqlReader):
    """Base of the reading half of the store: statements, snapshots, typed errors."""

    __slots__ = ("_path", "_reader")

    # Told so, the engine finds the rows first, in order, and each one's actor after it.
    JOIN = "CROSS JOIN"
    GREATEST = "max"
    OPEN_EFFECTS = " INDEXED BY effects_open"

    def __init__(self, path: Path, reader: sqlite3.Connection, clock: Clock) -> None:
        super().__init__(clock)
        self._path = path
        self._reader = reader

    async def _aside(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a long read on a connection and a thread of its own."""

        def run() -> T:
            try:
                if fault("resource.descriptors"):
                    raise engine_error(sqlite3.SQLITE_CANTOPEN)
                with closing(connect_reader(self._path)) as connection:
                    return job(connection)
            except sqlite3.Error as error:
                raise translate_error(error, str(self._path)) from error

        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kelpie-store-aside")
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, run)
        finally:
            executor.shutdown(wait=False)

    async def _fetch(self, query: str, values: Sequence[object], subject: str) -> list[Row]:
        return self._query(query, values, subject)

    def _query(self, query: str, values: Sequence[object], subject: str) -> list[Row]:
        try:
            if fault("storage.read_fail"):
                raise engine_error(sqlite3.SQLITE_IOERR)
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate_error(error, subject) from error

    @contextmanager
    def _snapshot(self, subject: str) -> Generator[None, None, None]:
        """Let every read inside see the same commit."""
        self._query("BEGIN", (), subject)
        try:
            yield
        except sqlite3.Error as error:
            raise translate_error(error, subject) from error
        finally:
            if self._reader.in_transaction:
                self._reader.execute("ROLLBACK")
