"""Reads of what only grows: event logs, streams, audit chains."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from kelpie.core.errors import CursorAheadError, CursorExpiredError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import EVENT_PAGE_ROWS_MAX
from kelpie.storage import decode
from kelpie.storage.bounds import require_integers, text_bytes
from kelpie.storage.decode import AUDIT_COLUMNS
from kelpie.storage.paging import require_limit
from kelpie.storage.records import AuditRecord, StoredEvent, StreamChunk
from kelpie.storage.sql.reader import INCARNATION, SqlReader

_AUDIT_PAGE_ROWS: Final = 500
# Every event comes with its actor's floor: one statement, one snapshot.
_FLOOR: Final = "(SELECT a.event_floor FROM actors a WHERE a.actor = ?)"
_EVENTS: Final = (
    f"SELECT {_FLOOR}, e.position, e.actor, e.sequence, e.at_ms, e.kind, e.checksum, e.body"
    f" FROM events e WHERE e.actor = ? AND e.sequence > {{0}}(?, {_FLOOR})"
    " ORDER BY e.sequence LIMIT ?"
)
_BOUNDS: Final = "SELECT event_sequence, event_floor FROM actors WHERE actor = ?"


class LogReads(SqlReader):
    """Reads of logs, by cursor."""

    __slots__ = ()

    async def events(self, actor: ActorId, after: int, limit: int) -> list[StoredEvent]:
        """Return the actor's events with sequence > ``after``, gapless and in order.

        ``after`` 0 begins with the oldest event that is kept.

        Raises:
            CursorAheadError: ``after`` is beyond the newest event.
            CursorExpiredError: Events after ``after`` were removed with a deleted incarnation.
        """
        require_limit(limit, EVENT_PAGE_ROWS_MAX)
        require_integers("after", after)
        name = str(actor)
        query = _EVENTS.format(self.GREATEST)
        rows = await self._fetch(query, (name, name, after, name, limit), name)
        floor = rows[0][0] if rows else 0
        if not rows:
            # Events that came since the look above are no harm: the cursor is not beyond them.
            newest, floor = await self._fetch_one(_BOUNDS, (name,), name) or (0, 0)
            require_cursor(after, newest)
        if 0 < after < floor:
            message = f"events up to {floor} of {name} were removed; begin again with 0"
            raise CursorExpiredError(message, after=after, floor=floor)
        return [decode.stored_event(row[1:]) for row in rows]

    async def event_newest(self, actor: ActorId) -> int | None:
        """Return the sequence of a living actor's newest event, 0 if it has none."""
        name = str(actor)
        query = "SELECT event_sequence FROM actors WHERE actor = ? AND NOT tombstoned"
        row = await self._fetch_one(query, (name,), name)
        return None if row is None else int(row[0])

    async def stream(
        self, actor: ActorId, effect_id: str, attempt: int, after: int, limit: int
    ) -> list[StreamChunk]:
        """Return chunks of one attempt with sequence > ``after``."""
        require_limit(limit, EVENT_PAGE_ROWS_MAX)
        text_bytes("effect_id", effect_id)
        require_integers("attempt", attempt, after)
        rows = await self._fetch(
            "SELECT s.effect_id, s.attempt, s.sequence, s.kind, s.checksum, s.body FROM streams s"
            f" WHERE s.actor = ? AND s.incarnation = {INCARNATION}"
            " AND s.effect_id = ? AND s.attempt = ? AND s.sequence > ?"
            " ORDER BY s.sequence LIMIT ?",
            (str(actor), str(actor), effect_id, attempt, after, limit),
            str(actor),
        )
        return list(map(decode.stream_chunk, rows))

    # --- audit ----------------------------------------------------------------------------------

    async def audit(self, tenant: Tenant) -> AsyncIterator[AuditRecord]:
        """Yield the tenant's audit records, by shard and sequence."""
        shard, sequence = -1, 0
        while True:
            rows = await self._fetch(
                f"SELECT {AUDIT_COLUMNS} FROM audit WHERE tenant = ?"
                " AND (shard, sequence) > (?, ?) ORDER BY shard, sequence LIMIT ?",
                (tenant, shard, sequence, _AUDIT_PAGE_ROWS),
                "audit",
            )
            for row in rows:
                record = decode.audit_record(row)
                shard, sequence = record.shard, record.sequence
                yield record
            if len(rows) < _AUDIT_PAGE_ROWS:
                return

    async def audit_chain(self, shard: int) -> AsyncIterator[AuditRecord]:
        """Yield every record of one shard's chain, in order."""
        sequence = 0
        while True:
            rows = await self._fetch(
                f"SELECT {AUDIT_COLUMNS} FROM audit WHERE shard = ? AND sequence > ?"
                " ORDER BY sequence LIMIT ?",
                (shard, sequence, _AUDIT_PAGE_ROWS),
                "audit",
            )
            for row in rows:
                record = decode.audit_record(row)
                sequence = record.sequence
                yield record
            if len(rows) < _AUDIT_PAGE_ROWS:
                return


def require_cursor(after: int, newest: int) -> None:
    """Return if a cursor lies within what there is.

    Raises:
        CursorAheadError: ``after`` is beyond ``newest``.
    """
    if after > newest:
        message = f"after is {after:,}, the newest event is {newest:,}; use a cursor you were given"
        raise CursorAheadError(message, after=after, newest=newest)
