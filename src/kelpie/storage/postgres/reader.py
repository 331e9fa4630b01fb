"""Statements over a pool of connections, and how a read fails.

Each read is one statement, which is one snapshot and one round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from kelpie.core.limits import INTEGER_MAX, INTEGER_MIN
from kelpie.ports.clock import Clock
from kelpie.storage.decode import Row
from kelpie.storage.postgres.driver import DriverError, ReaderPool, translate_error
from kelpie.storage.sql.reader import Filter, SqlReader


class PostgresReader(SqlReader):
    """Base of the reading half of the store."""

    __slots__ = ("_pool", "_session")

    def __init__(self, pool: ReaderPool, session: str, clock: Clock) -> None:
        super().__init__(clock)
        self._pool = pool
        self._session: str = session

    async def _fetch(self, query: str, values: Sequence[object], subject: str) -> Sequence[Row]:
        bound = [_clamp(value) if isinstance(value, int) else value for value in values]
        try:
            return await self._pool.fetch(number_marks(query), *bound)
        except DriverError as error:
            raise translate_error(error, subject) from error

    def _own(self, column: str) -> Filter:
        """Return what leaves only rows whose shard, in ``column``, this session owns.

        Whoever has no session looks at everything, and drives nothing of it.
        """
        if not self._session:
            return Filter("", ())
        # As an array it is a mere condition on rows that come in order; a join would sort them.
        owned = "ARRAY(SELECT shard FROM shards WHERE session = ?)"
        return Filter(f" AND {column} = ANY({owned})", (self._session,))


@lru_cache(maxsize=512)
def number_marks(query: str) -> str:
    """Return ``query`` with $1, $2, … in the place of question marks."""
    first, *rest = query.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, start=1))


def _clamp(value: int) -> int:
    """Return the nearest integer that the engine knows; no row has one beyond."""
    return min(max(value, INTEGER_MIN), INTEGER_MAX)
