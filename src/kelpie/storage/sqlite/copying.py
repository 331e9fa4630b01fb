"""The embedded store as the source or the target of a copy. Blocks on the disk.

Neither takes a session: a source is left as it is until it is sealed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from kelpie.core.digests import digest_value
from kelpie.core.errors import ConflictError, NotFoundError, StoreSealedError
from kelpie.core.ids import derive_uuid
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.storage.copying import CopyMark, Progress, SourceState
from kelpie.storage.holder import HolderLock
from kelpie.storage.sqlite.engine import checkpoint, connect_writer, translate_error
from kelpie.storage.sqlite.migrations import migrate
from kelpie.storage.sqlite.tables import EVERY, read_rows, write_rows
from kelpie.storage.tables import STORE_TABLES, Row, Table

SEALED: Final = "sealed"
COPYING: Final = "copying"
_COPIED: Final = "copied:"


def require_unsealed(connection: sqlite3.Connection, place: str) -> None:
    """Return if the file is a store that may be opened.

    Raises:
        StoreSealedError: It was copied elsewhere, or is a copy in the making.
    """
    sealed = _read_mark(connection, SEALED)
    if sealed is not None:
        message = f"{place} was copied to {sealed.target}, and is closed since; open that one"
        raise StoreSealedError(message, store=place, target=sealed.target)
    copying = _read_mark(connection, COPYING)
    if copying is not None:
        message = f"{place} is a copy of {copying.source} that is not whole; repeat the copy"
        raise StoreSealedError(message, store=place, source=copying.source)


def _read_mark(connection: sqlite3.Connection, name: str) -> CopyMark | None:
    query = "SELECT value FROM meta WHERE name = ?"
    row = connection.execute(query, (name,)).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=CopyMark)


class SqliteCopy:
    """One file, locked: a `kelpie.storage.copying.CopySource` and a ``CopyTarget``."""

    def __init__(self, path: Path, *, clock: Clock, rng: Rng, is_source: bool) -> None:
        """Lock the file.

        Raises:
            NotFoundError: It is to be the source, and is not there.
            StoreHeldError: Another process holds it.
            StoreVersionError: It is newer than this program, or not a store.
        """
        self._path = path
        self._clock = clock
        self._rng = rng
        if is_source and not path.exists():
            raise NotFoundError("store", str(path))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = HolderLock.acquire(path)
        try:
            self._is_new = not path.exists()
            with self._failures():
                self._connection = connect_writer(path)
                migrate(self._connection)
        except BaseException:
            self._lock.release()
            raise

    @property
    def place(self) -> str:
        """Where it is."""
        return f"sqlite:{self._path}"

    def close(self) -> None:
        """Let go of the file."""
        with self._failures():
            checkpoint(self._connection)
            self._connection.close()
        self._lock.release()

    async def state(self) -> SourceState:
        """Return what the source is at.

        Raises:
            StoreSealedError: It is a copy in the making itself.
        """
        with self._failures():
            sealed = _read_mark(self._connection, SEALED)
            if sealed is None:
                require_unsealed(self._connection, self.place)
            return SourceState(self._stamp(), sealed)

    def _stamp(self) -> str:
        """Return what changes with every session that opened the file."""
        query = "SELECT value FROM meta WHERE name = 'incarnation'"
        names = self._connection.execute(query).fetchall()
        query = "SELECT session, started_ms FROM sessions ORDER BY rowid"
        sessions = self._connection.execute(query).fetchall()
        counters = self._connection.execute("SELECT * FROM counters ORDER BY name").fetchall()
        return digest_value([names, sessions, counters])

    async def rows(self, table: Table, *, after: Row | None, limit: int) -> list[Row]:
        """Return up to ``limit`` rows with a key above ``after``, by key."""
        with self._failures():
            return read_rows(self._connection, table, EVERY, after=after, limit=limit)

    async def seal(self, mark: CopyMark) -> None:
        """Close the source for good.

        Raises:
            ConflictError: Something was done to it since ``mark``.
        """
        with self._failures(), self._transaction():
            if self._stamp() != mark.stamp:
                raise ConflictError(f"{self.place} was written to meanwhile; copy it again")
            query = "INSERT INTO meta VALUES (?, ?)"
            self._connection.execute(query, (SEALED, msgspec.json.encode(mark).decode()))
        assert not self._connection.in_transaction, "the seal is durable"
        assert _read_mark(self._connection, SEALED) == mark, "from here on it is closed"

    async def begin(self, mark: CopyMark) -> Mapping[str, Progress] | None:
        """Return how far this copy came before; None if there is a store.

        What another copy left is removed.
        """
        with self._failures(), self._transaction():
            copying = _read_mark(self._connection, COPYING)
            if copying is None and not self._is_new and self._has_sessions():
                return None
            if copying != mark:
                for table in STORE_TABLES:
                    self._connection.execute(f"DELETE FROM {table.name}")  # noqa: S608
                self._connection.execute("DELETE FROM state_chunks")
                self._connection.execute("DELETE FROM meta")
                query = "INSERT INTO meta VALUES (?, ?)"
                self._connection.execute(query, (COPYING, msgspec.json.encode(mark).decode()))
            rows = self._connection.execute(
                "SELECT name, value FROM meta WHERE name LIKE ?", (f"{_COPIED}%",)
            ).fetchall()
        assert not self._connection.in_transaction, "the mark is durable"
        assert _read_mark(self._connection, COPYING) == mark, "nobody else opens it"
        return {
            name.removeprefix(_COPIED): msgspec.json.decode(value, type=Progress)
            for name, value in rows
        }

    def _has_sessions(self) -> bool:
        query = "SELECT EXISTS (SELECT 1 FROM sessions) OR EXISTS (SELECT 1 FROM meta)"
        (found,) = self._connection.execute(query).fetchone()
        return bool(found)

    async def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        """Write new rows and how far the table has come, in one transaction."""
        with self._failures(), self._transaction():
            write_rows(self._connection, table, rows)
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                (f"{_COPIED}{table.name}", msgspec.json.encode(progress).decode()),
            )
        assert not self._connection.in_transaction, "a page is one transaction"
        assert progress.tally.count >= len(rows), "what was written was counted"

    async def open(self, mark: CopyMark) -> None:
        """Make the target a store: a new incarnation with higher epochs, held."""
        now_ms = self._clock.now_ms()
        incarnation = derive_uuid(self._rng.bytes(16), 0)
        execute = self._connection.execute
        with self._failures(), self._transaction():
            assert _read_mark(self._connection, COPYING) == mark, "another copy"
            execute("DELETE FROM meta WHERE name = ? OR name LIKE ?", (COPYING, f"{_COPIED}%"))
            execute("INSERT INTO meta VALUES ('incarnation', ?)", (incarnation,))
            execute("INSERT INTO meta VALUES ('held', ?)", (str(now_ms),))
            execute("UPDATE shards SET epoch = epoch + 1, session = ''")
            execute("DELETE FROM call_counts")
            execute("INSERT INTO call_counts SELECT tenant, count(*) FROM calls GROUP BY tenant")
        assert not self._connection.in_transaction, "the target is open"

    @contextmanager
    def _transaction(self) -> Generator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _failures(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise translate_error(error, self.place) from error
