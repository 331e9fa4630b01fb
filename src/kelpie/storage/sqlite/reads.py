"""The whole reading half of the store."""

from __future__ import annotations

import sqlite3
from functools import partial

from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import EVENT_PAGE_ROWS_MAX
from kelpie.ports.faults import fault
from kelpie.storage import decode
from kelpie.storage.bounds import require_integers
from kelpie.storage.paging import require_limit
from kelpie.storage.records import StoredActor, StoredEvent
from kelpie.storage.sql.calls import CallReads
from kelpie.storage.sql.keys import KeyReads
from kelpie.storage.sql.logs import LogReads, require_cursor
from kelpie.storage.sql.work import WorkReads
from kelpie.storage.sqlite.actor_reads import (
    fetch_actor,
    glance_at_actor,
    is_large,
    read_large_actor,
    stored_actor,
)
from kelpie.storage.sqlite.departures import SEALS, moved_error, seal_of
from kelpie.storage.sqlite.engine import translate_error
from kelpie.storage.sqlite.injected import engine_error
from kelpie.storage.sqlite.reader import SqliteReader

_TAIL = (
    "SELECT e.position, e.actor, e.sequence, e.at_ms, e.kind, e.checksum, e.body"
    " FROM events e CROSS JOIN actors a ON a.actor = e.actor"
    " WHERE e.tenant = ? AND e.position > ? AND e.sequence > a.event_floor"
    " ORDER BY e.position LIMIT ?"
)


class SqliteReads(SqliteReader, LogReads, CallReads, KeyReads, WorkReads):
    """The reading half of the store."""

    __slots__ = ()

    async def load(self, actor: ActorId) -> StoredActor | None:
        """Return the actor's last durable version, or None if it never existed.

        A deleted actor has version 0: what the next incarnation's first commit expects. A large
        state is read beside the event loop.

        Raises:
            CorruptionError: Its checksum does not match; the error names the actor.
            ActorMovedError: It was exported.
        """
        name = str(actor)
        try:
            if fault("storage.read_fail"):
                raise engine_error(sqlite3.SQLITE_IOERR)
            raw, has_more = glance_at_actor(self._reader, name)
        except sqlite3.Error as error:
            raise translate_error(error, name) from error
        if has_more:
            with self._snapshot(name):
                self._require_open_actor(name)
                raw = fetch_actor(self._reader, name, is_aside=False)
        if raw is None:
            return None
        if is_large(raw):
            return await self._aside(partial(read_large_actor, actor=actor))
        return stored_actor(actor, raw)

    def _require_open_actor(self, name: str) -> None:
        if rows := self._query(f"{SEALS} WHERE actor = ?", (name,), name):
            raise moved_error(seal_of(rows[0]))

    async def events_tail(
        self, tenant: Tenant, after_position: int, limit: int
    ) -> list[StoredEvent]:
        """Return all the tenant's events with position > ``after_position``, in commit order.

        Raises:
            CursorAheadError: ``after_position`` is beyond the newest event of the store.
        """
        require_limit(limit, EVENT_PAGE_ROWS_MAX)
        require_integers("after", after_position)
        rows = await self._fetch(_TAIL, (tenant, after_position, limit), "events")
        if not rows:
            query = "SELECT value FROM counters WHERE name = 'event'"
            (newest,) = await self._fetch_one(query, (), "counters") or (0,)
            require_cursor(after_position, newest)
        return list(map(decode.stored_event, rows))
