"""A whole store into another, of whatever engine: resumable, verified, and never two of them open.

The source is quiet and locked for the whole copy, and the target cannot be opened. Rows go over in
pages; each page is one transaction of the target, together with how far it has come. Then every row
is read back and compared by count and checksum. Then the source is sealed, which is the one step
that decides: before it the source is the store, after it the target is. A copy that was interrupted
goes on with the same command, on either side of that step.

The target is a new incarnation with higher epochs, and held, as a restored store is.

Source: the design's rule on copied stores, docs/how-to/move-an-installation.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from kelpie.core.errors import ConflictError, CorruptionError
from kelpie.core.limits import COPY_PAGE_ROWS
from kelpie.storage.tables import STORE_TABLES, Row, Table

_SUM_MODULUS: Final = 1 << 256
_UNCOUNTED: Final = frozenset({"counters", "shards"})
"""Tables that an engine keeps in a way of its own."""


class RowTally(msgspec.Struct, frozen=True):
    """How many rows there are, and the sum of their checksums, whatever their order."""

    count: int = 0
    total: str = "0"

    def add(self, rows: Sequence[Row]) -> RowTally:
        """Return the tally with more rows."""
        total = int(self.total, 16)
        for row in rows:
            total += int.from_bytes(hashlib.sha256(msgspec.msgpack.encode(row)).digest(), "big")
        return RowTally(self.count + len(rows), f"{total % _SUM_MODULUS:x}")


class Progress(msgspec.Struct, frozen=True):
    """How far one table has come: the key of the last row that was written."""

    after: tuple[str | int, ...] | None = None
    tally: RowTally = RowTally()
    is_done: bool = False


class CopyMark(msgspec.Struct, frozen=True, kw_only=True):
    """Which copy a store is the source or the target of.

    ``stamp`` changes with whatever is done to the source; a copy of another stamp begins anew.
    """

    source: str
    target: str
    stamp: str


class SourceState(NamedTuple):
    """What a source says of itself; ``sealed`` is the copy that it was sealed for."""

    stamp: str
    sealed: CopyMark | None


class CopySource(Protocol):
    """A store that nobody writes to meanwhile."""

    @property
    def place(self) -> str:
        """Where it is, as people may see it."""
        ...

    async def state(self) -> SourceState:
        """Return what it is at."""
        ...

    async def rows(self, table: Table, *, after: Row | None, limit: int) -> list[Row]:
        """Return up to ``limit`` rows with a key above ``after``, by key."""
        ...

    async def seal(self, mark: CopyMark) -> None:
        """Close it for good, in one transaction.

        Raises:
            ConflictError: Something was done to it since ``mark``.
        """
        ...


class CopyTarget(Protocol):
    """A store that cannot be opened until `open`."""

    @property
    def place(self) -> str:
        """Where it is, as people may see it."""
        ...

    async def begin(self, mark: CopyMark) -> Mapping[str, Progress] | None:
        """Return how far this copy came before, by table; None once it is open.

        What another copy of the same source left is removed.

        Raises:
            ConflictError: There is a store already.
        """
        ...

    async def write(self, table: Table, rows: Sequence[Row], progress: Progress) -> None:
        """Write new rows and how far the table has come, in one transaction."""
        ...

    async def rows(self, table: Table, *, after: Row | None, limit: int) -> list[Row]:
        """Return up to ``limit`` rows that were written, with a key above ``after``, by key."""
        ...

    async def open(self, mark: CopyMark) -> None:
        """Make it a store: a new incarnation with higher epochs, held; in one transaction."""
        ...


class Copied(NamedTuple):
    """What was copied."""

    source: str
    target: str
    rows: int
    was_resumed: bool


async def copy_store(
    source: CopySource, target: CopyTarget, *, tell: Callable[[str], None]
) -> Copied:
    """Copy everything, verify it, seal the source and open the target.

    Args:
        source: A quiet store.
        target: Where nothing is, or what an interrupted copy of this source left.
        tell: Told of each table that is done.

    Raises:
        ConflictError: The source was sealed for another copy, or there is a store at the target.
        CorruptionError: A row is damaged, or did not arrive as it was.
    """
    state = await source.state()
    mark = CopyMark(source=source.place, target=target.place, stamp=state.stamp)
    if state.sealed is not None and state.sealed != mark:
        message = f"{source.place} was copied to {state.sealed.target}, and is closed since"
        raise ConflictError(message, target=state.sealed.target)
    found = await target.begin(mark)
    if found is None:
        if state.sealed is None:
            message = f"there is a store at {target.place} already; name another place"
            raise ConflictError(message, target=target.place)
        return Copied(source.place, target.place, 0, was_resumed=True)
    count = 0
    for table in STORE_TABLES:
        progress = found.get(table.name, Progress())
        progress = await _copy_table(source, target, table, progress)
        if table.name not in _UNCOUNTED:
            await _verify_table(target, table, progress.tally)
        count += progress.tally.count
        tell(f"{table.name}: {progress.tally.count:,} rows, verified")
    if state.sealed is None:
        await source.seal(mark)
    await target.open(mark)
    return Copied(source.place, target.place, count, was_resumed=bool(found))


async def _copy_table(
    source: CopySource, target: CopyTarget, table: Table, progress: Progress
) -> Progress:
    while not progress.is_done:
        page = await source.rows(table, after=progress.after, limit=COPY_PAGE_ROWS)
        after = progress.after
        if page:
            after = tuple(_key_value(value) for value in table.key_of(page[-1]))
        is_done = len(page) < COPY_PAGE_ROWS
        progress = Progress(after, progress.tally.add(page), is_done)
        await target.write(table, page, progress)
    return progress


def _key_value(value: str | int | bytes | None) -> str | int:
    assert isinstance(value, str | int), "keys are texts and numbers"
    return value


async def _verify_table(target: CopyTarget, table: Table, expected: RowTally) -> None:
    """Read a table back and return if it is what was copied.

    Raises:
        CorruptionError: It is not.
    """
    tally, after = RowTally(), None
    while True:
        page = await target.rows(table, after=after, limit=COPY_PAGE_ROWS)
        tally = tally.add(page)
        if len(page) < COPY_PAGE_ROWS:
            break
        after = table.key_of(page[-1])
    if tally != expected:
        message = (
            f"{table.name} at {target.place} has {tally.count:,} rows with another checksum than "
            f"the {expected.count:,} that were copied; remove it and copy again"
        )
        raise CorruptionError(message, subject=table.name)
