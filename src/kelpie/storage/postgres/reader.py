"""Statements over a pool of connections, and how a read fails.

Each read is one statement, which is one snapshot and one round trip. Every connection of the pool
was prepared by `prepare_reader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache

import asyncpg

from kelpie.core.errors import (
    CorruptionError,
    DiskFullError,
    OverloadedError,
    StoreAwayError,
    StoreError,
    StoreVersionError,
)
from kelpie.core.limits import INTEGER_MAX, INTEGER_MIN
from kelpie.ports.clock import Clock
from kelpie.storage.decode import Row
from kelpie.storage.postgres.driver import is_lost
from kelpie.storage.postgres.texts import keep_texts
from kelpie.storage.sql.reader import Filter, SqlReader


class PostgresReader(SqlReader):
    """Base of the reading half of the store."""

    __slots__ = ("_pool", "_session")

    def __init__(self, pool: asyncpg.Pool, session: str, clock: Clock) -> None:
        super().__init__(clock)
        self._pool = pool
        self._session = session

    async def _fetch(self, query: str, values: Sequence[object], subject: str) -> Sequence[Row]:
        bound = [_clamp(value) if isinstance(value, int) else value for value in values]
        try:
            rows: list[Row] = await self._pool.fetch(number_marks(query), *bound)
        except READ_ERRORS as error:
            raise translate_error(error, subject) from error
        return rows

    def _own(self, column: str) -> Filter:
        """Return what leaves only rows whose shard, in ``column``, this session owns.

        Whoever has no session looks at everything, and drives nothing of it.
        """
        if not self._session:
            return Filter("", ())
        # As an array it is a mere condition on rows that come in order; a join would sort them.
        owned = "ARRAY(SELECT shard FROM shards WHERE session = ?)"
        return Filter(f" AND {column} = ANY({owned})", (self._session,))


READ_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    asyncio.TimeoutError,
)
"""How a statement that changes nothing can fail."""


class ReadingConnection(asyncpg.Connection):  # type: ignore[misc]  # the driver has no types
    """A connection of the pool. Reads leave nothing behind, so it is given back as it is."""

    def get_reset_query(self) -> str:
        """Return nothing: cleaning up would cost every read a second round trip."""
        return ""


async def prepare_reader(connection: asyncpg.Connection) -> None:
    """Make a new connection of the pool one that only reads, in the store's schema."""
    await keep_texts(connection)
    await connection.execute(
        "SET search_path TO kelpie; SET default_transaction_read_only TO on;"
        # A page of rows is never worth the time that compiling its query takes.
        " SET jit TO off"
    )


@lru_cache(maxsize=512)
def number_marks(query: str) -> str:
    """Return ``query`` with $1, $2, … in the place of question marks."""
    first, *rest = query.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, start=1))


def _clamp(value: int) -> int:
    """Return the nearest integer that the engine knows; no row has one beyond."""
    return min(max(value, INTEGER_MIN), INTEGER_MAX)


def translate_error(error: BaseException, subject: str) -> StoreError | OverloadedError:
    """Return the typed error for a failure that left nothing behind.

    Args:
        error: What the driver raised; see ``READ_ERRORS``.
        subject: What was read or written: an actor, a store's address without its password.
    """
    match error:
        case asyncpg.DiskFullError():
            message = f"no space left for {subject}; free some disk space and try again"
            return DiskFullError(message, subject=subject)
        case asyncpg.DataCorruptedError() | asyncpg.IndexCorruptedError():
            message = f"{subject} is damaged ({error}); run a check, then restore a backup"
            return CorruptionError(message, subject=subject)
        case asyncpg.UndefinedTableError() | asyncpg.UndefinedColumnError():
            message = f"{subject}: the database has no store of this version ({error})"
            return StoreVersionError(message, subject=subject)
        case asyncpg.TooManyConnectionsError():
            message = f"{subject}: the database takes no more connections; raise max_connections"
            return OverloadedError(message, subject=subject)
        case _:
            name = getattr(error, "sqlstate", None) or type(error).__name__
            text = str(error) or "no answer"
            message = f"{subject}: {text} ({name}); look at the database, then try again"
            kind = StoreAwayError if is_lost(error) else StoreError
            return kind(message, subject=subject, engine=name)
