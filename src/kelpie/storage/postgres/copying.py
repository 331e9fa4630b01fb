"""A PostgreSQL database as the source or the target of a copy."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from kelpie.core.digests import digest_value
from kelpie.core.errors import ConflictError, StoreSealedError
from kelpie.core.ids import ActorId, derive_uuid
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.storage.copying import CopyMark, Progress, SourceState
from kelpie.storage.postgres.driver import DriverError, ServerConnection, connect, refuse_to_open
from kelpie.storage.postgres.migrations import migrate
from kelpie.storage.sealing import seal, unseal
from kelpie.storage.tables import STORE_TABLES, Row, Table, Value

SEALED: Final = "sealed"
COPYING: Final = "copying"
_COPIED: Final = "copied:"
_BOOLEANS: Final = frozenset({"tombstoned", "is_open"})
_RECEIVED: Final = frozenset({"outbox", "dead_letters"})
_COUNTERS: Final = (
    "SELECT 'event', coalesce((SELECT max(position) FROM events), 0)::bigint UNION ALL"
    " SELECT 'message', greatest((SELECT max(message_id) FROM outbox),"
    " (SELECT max(message_id) FROM dead_letters), (SELECT max(message_id) FROM calls), 0)::bigint"
)


async def require_unsealed(connection: ServerConnection, place: str) -> None:
    """Return if the database is a store that may be opened.

    Raises:
        StoreSealedError: It was copied elsewhere, or is a copy in the making.
    """
    sealed = await _read_mark(connection, SEALED)
    if sealed is not None:
        message = f"{place} was copied to {sealed.target}, and is closed since; open that one"
        raise StoreSealedError(message, store=place, target=sealed.target)
    copying = await _read_mark(connection, COPYING)
    if copying is not None:
        message = f"{place} is a copy of {copying.source} that is not whole; repeat the copy"
        raise StoreSealedError(message, store=place, source=copying.source)


async def _read_mark(connection: ServerConnection, name: str) -> CopyMark | None:
    value = await connection.fetchval("SELECT value FROM meta WHERE name = $1", name)
    return None if value is None else msgspec.json.decode(value, type=CopyMark)


class PostgresCopy:
    """One database: a `kelpie.storage.copying.CopySource` and a ``CopyTarget``."""

    def __init__(self, connection: ServerConnection, place: str, *, clock: Clock, rng: Rng) -> None:
        self._connection = connection
        self._place = place
        self._clock = clock
        self._rng = rng

    @classmethod
    async def connect(cls, dsn: str, place: str, *, clock: Clock, rng: Rng) -> PostgresCopy:
        """Connect and bring the schema up to date.

        Raises:
            StoreError: The server cannot be reached.
            StoreVersionError: The schema is another program's, or newer than this program.
        """
        try:
            connection = await connect(dsn, name="kelpie-copy")
            await migrate(connection)
        except DriverError as error:
            raise refuse_to_open(error, place) from error
        return cls(connection, place, clock=clock, rng=rng)

    @property
    def place(self) -> str:
        """Where it is, without its password."""
        return self._place

    async def close(self) -> None:
        """Let go of the database."""
        await self._connection.close()

    async def state(self) -> SourceState:
        """Return what the source is at.

        Raises:
            ConflictError: Nodes use it.
            StoreSealedError: It is a copy in the making itself.
        """
        async with self._transaction():
            sealed = await _read_mark(self._connection, SEALED)
            if sealed is None:
                await require_unsealed(self._connection, self.place)
                await self._require_quiet()
            return SourceState(await self._stamp(), sealed)

    async def _require_quiet(self) -> None:
        query = "SELECT name FROM sessions WHERE ended_ms = 0 LIMIT 1"
        name = await self._connection.fetchval(query)
        if name is not None:
            message = f"node {name!r} uses {self.place}; stop every node before the copy"
            raise ConflictError(message, node=str(name))

    async def _stamp(self) -> str:
        """Return what changes with every session that opened the database."""
        fetch = self._connection.fetch
        names = await fetch("SELECT value FROM meta WHERE name = 'incarnation'")
        sessions = await fetch("SELECT session, started_ms FROM sessions ORDER BY session")
        counters = await fetch(_COUNTERS)
        return digest_value(
            [[list(row.values()) for row in rows] for rows in (names, sessions, counters)]
        )

    async def rows(self, table: Table, *, after: Row | None, limit: int) -> list[Row]:
        """Return up to ``limit`` rows with a key above ``after``, by key.

        Raises:
            CorruptionError: A checksum does not match.
        """
        if table.name == "counters":
            found = [] if after is not None else await self._connection.fetch(_COUNTERS)
            return [tuple(row.values()) for row in found]
        own = ("checksum",) if table.body else ()
        query = f"SELECT {', '.join((*table.names, *own))} FROM {table.name}"
        if after is not None:
            marks = ", ".join(f"${number}" for number in range(1, len(after) + 1))
            query += f" WHERE ({', '.join(table.key)}) > ({marks})"
        query += f" ORDER BY {', '.join(table.key)} LIMIT {limit:d}"
        found = await self._connection.fetch(query, *(after or ()))
        return [_read(table, list(row.values())) for row in found]

    async def seal(self, mark: CopyMark) -> None:
        """Close the source for good.

        Raises:
            ConflictError: Something was done to it since ``mark``.
        """
        async with self._transaction():
            # Nobody joins between the look and the seal.
            await self._connection.execute("LOCK TABLE sessions IN SHARE MODE")
            await self._require_quiet()
            if await self._stamp() != mark.stamp:
                raise ConflictError(f"{self.place} was written to meanwhile; copy it again")
            await self._note(SEALED, msgspec.json.encode(mark).decode())
        assert await _read_mark(self._connection, SEALED) == mark, "from here on it is closed"

    async def begin(self, mark: CopyMark) -> Mapping[str, Progress] | None:
        """Return how far this copy came before; None if there is a store.

        What another copy left is removed.
        """
        async with self._transaction():
            copying = await _read_mark(self._connection, COPYING)
            query = "SELECT value FROM meta WHERE name = 'incarnation'"
            if copying is None and await self._connection.fetchval(query) is not None:
                return None
            if copying != mark:
                for table in STORE_TABLES:
                    if table.name not in {"counters", "shards"}:
                        await self._connection.execute(f"DELETE FROM {table.name}")
                await self._connection.execute("DELETE FROM meta WHERE name LIKE $1", f"{_COPIED}%")
                await self._note(COPYING, msgspec.json.encode(mark).decode())
            query = "SELECT name, value FROM meta WHERE name LIKE $1"
            rows = await self._connection.fetch(query, f"{_COPIED}%")
        assert await _read_mark(self._connection, COPYING) == mark, "nobody else opens it"
        assert all(row["name"].startswith(_COPIED) for row in rows), "progress of tables"
        return {
            row["name"].removeprefix(_COPIED): msgspec.json.decode(row["value"], type=Progress)
            for row in rows
        }

    async def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        """Write new rows and how far the table has come, in one transaction."""
        async with self._transaction():
            if table.name == "shards":
                for shard, epoch in rows:
                    query = "UPDATE shards SET epoch = greatest(epoch, $2) WHERE shard = $1"
                    await self._connection.execute(query, shard, epoch)
            elif table.name != "counters":
                await self._insert(table, rows)
            await self._note(f"{_COPIED}{table.name}", msgspec.json.encode(progress).decode())
        assert progress.tally.count >= len(rows), "what was written was counted"

    async def _insert(self, table: Table, rows: Sequence[Row]) -> None:
        own = ("checksum",) if table.body else ()
        received = ("receiver_shard",) if table.name in _RECEIVED else ()
        columns = (*table.names, *own, *received)
        marks = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
        query = f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks})"
        for row in rows:
            tag = await self._connection.execute(query, *_written(table, row))
            assert tag.endswith(" 1"), "a row is written once"

    async def open(self, mark: CopyMark) -> None:
        """Make the target a store: a new incarnation with higher epochs, held."""
        now_ms = self._clock.now_ms()
        incarnation = derive_uuid(self._rng.bytes(16), 0)
        execute = self._connection.execute
        async with self._transaction():
            assert await _read_mark(self._connection, COPYING) == mark, "another copy"
            await execute(
                "DELETE FROM meta WHERE name = $1 OR name LIKE $2", COPYING, f"{_COPIED}%"
            )
            await self._note("incarnation", incarnation)
            await self._note("held", str(now_ms))
            await execute("UPDATE shards SET epoch = epoch + 1, session = ''")
            await execute("DELETE FROM call_counts")
            await execute(
                "INSERT INTO call_counts SELECT tenant, shard, count(*) FROM calls"
                " GROUP BY tenant, shard"
            )
        assert await _read_mark(self._connection, COPYING) is None, "the target is open"

    async def _note(self, name: str, value: str) -> None:
        await self._connection.execute(
            "INSERT INTO meta VALUES ($1, $2)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            name,
            value,
        )

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[None]:
        try:
            async with self._connection.transaction():
                yield
        except DriverError as error:
            raise refuse_to_open(error, self.place) from error


def _read(table: Table, values: list[Any]) -> Row:
    if table.body:
        checksum = values.pop()
        place = table.place(table.body)
        values[place] = unseal(checksum, values[place], f"a row of {table.name}")
    return tuple(int(value) if isinstance(value, bool) else value for value in values)


def _written(table: Table, row: Row) -> list[Value]:
    values: list[Value] = [
        bool(value) if name in _BOOLEANS else value
        for name, value in zip(table.names, row, strict=True)
    ]
    if table.body:
        body = row[table.place(table.body)]
        assert isinstance(body, bytes), "a body is bytes"
        values.append(seal(body).checksum)
    if table.name in _RECEIVED:
        values.append(ActorId.parse(str(row[table.place("receiver")])).shard)
    return values
