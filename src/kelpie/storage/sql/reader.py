"""What an engine gives for reading: statements with ``?`` in the place of values.

The rooms beside this one hold the statements. They are plain SQL; where the engines differ, the
class attributes here say how.

Each statement is a snapshot of its own. What needs more than one statement belongs to the engine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

from kelpie.ports.clock import Clock
from kelpie.storage.decode import Row

# Joined to an actor's rows, this hides what is left of a deleted incarnation.
LIVING: Final = "a.incarnation = {0}.incarnation AND NOT a.tombstoned"

# The living incarnation of one actor. Rows that are found with it come in their index's order.
INCARNATION: Final = "(SELECT a.incarnation FROM actors a WHERE a.actor = ? AND NOT a.tombstoned)"


class Filter(NamedTuple):
    """SQL to append to a query's conditions, and the values to bind for it."""

    where: str
    values: tuple[object, ...]


class SqlReader:
    """Base of the reading half of a store.

    Attributes:
        JOIN: Joins an actor's row to rows that were found in order.
        GREATEST: The function that returns the larger of two values.
        OPEN_EFFECTS: Names the index of open effects, where the engine has to be told.
    """

    __slots__ = ("_clock",)

    JOIN: ClassVar[str] = "JOIN"
    GREATEST: ClassVar[str] = "greatest"
    OPEN_EFFECTS: ClassVar[str] = ""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @abstractmethod
    async def _fetch(self, query: str, values: Sequence[object], subject: str) -> Sequence[Row]:
        """Return the rows of one statement; ``subject`` is what an error names."""

    async def _fetch_one(self, query: str, values: Sequence[object], subject: str) -> Row | None:
        rows = await self._fetch(query, values, subject)
        assert len(rows) <= 1, "the query names one row"
        return rows[0] if rows else None

    async def _fetch_lone(self, query: str, values: Sequence[object], subject: str) -> Row | None:
        """Return the row of a statement that need not see what other reads see."""
        return await self._fetch_one(query, values, subject)

    def _own(self, column: str) -> Filter:
        """Return what leaves only rows whose shard, in ``column``, this session owns.

        A store with one holder owns all of them.
        """
        assert column, "a shard lies in a column"
        return Filter("", ())
