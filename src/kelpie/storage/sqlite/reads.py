"""Every read, on a connection that cannot write.

Reads run on the event loop's thread: each is one short statement, or a few inside one snapshot. In
WAL mode they neither wait for the writer nor hold it up, and see only what is durable.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from kelpie.core.errors import (
    CorruptionError,
    CursorAheadError,
    CursorExpiredError,
    NotFoundError,
)
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import (
    EVENT_PAGE_ROWS_MAX,
    KV_KEY_BYTES_MAX,
    LIST_PAGE_ROWS_MAX,
)
from kelpie.ports.clock import Clock
from kelpie.storage.bounds import require_integers, text_bytes
from kelpie.storage.records import (
    AuditRecord,
    DeadLetter,
    EffectRow,
    EffectState,
    ListItem,
    Page,
    ReminderRow,
    StoredActor,
    StoredEvent,
    StoredMessage,
    StoredReply,
    StreamChunk,
)
from kelpie.storage.sqlite import decode
from kelpie.storage.sqlite.decode import AUDIT_COLUMNS, EFFECT_COLUMNS, Row
from kelpie.storage.sqlite.engine import translate_error, unseal
from kelpie.storage.sqlite.paging import Place, require_limit, slice_page

T = TypeVar("T")
_AUDIT_PAGE_ROWS: Final = 500
# Joined to an actor's rows, this hides what is left of a deleted incarnation.
_LIVING: Final = "a.incarnation = {0}.incarnation AND a.tombstoned = 0"


class SqliteReads:
    """The reading half of the store."""

    __slots__ = ("_clock", "_reader")

    def __init__(self, reader: sqlite3.Connection, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock

    def _fetch(self, query: str, values: Sequence[object], subject: str) -> list[Row]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise translate_error(error, subject) from error

    def _fetch_one(self, query: str, values: Sequence[object], subject: str) -> Row | None:
        rows = self._fetch(query, values, subject)
        assert len(rows) <= 1, "the query names one row"
        return rows[0] if rows else None

    @contextmanager
    def _snapshot(self, subject: str) -> Generator[None, None, None]:
        """Let every read inside see the same commit."""
        self._fetch("BEGIN", (), subject)
        try:
            yield
        finally:
            if self._reader.in_transaction:
                self._reader.execute("ROLLBACK")

    # --- actors -------------------------------------------------------------------------------

    async def load(self, actor: ActorId) -> StoredActor | None:
        """Return the actor's last durable version, or None if it never existed.

        A deleted actor has version 0: what the next incarnation's first commit expects.

        Raises:
            CorruptionError: Its checksum does not match; the error names the actor.
        """
        name = str(actor)
        with self._snapshot(name):
            row = self._fetch_one(
                "SELECT incarnation, version, schema_version, event_sequence, tombstoned,"
                " checksum, chunks, state FROM actors WHERE actor = ?",
                (name,),
                name,
            )
            if row is None:
                return None
            incarnation, version, schema_version, sequence, tombstoned, checksum, chunks, _ = row
            state = self._read_chunks(name, chunks) if chunks else row[7]
            effects: list[Row] = []
            if not tombstoned:
                query = f"SELECT {EFFECT_COLUMNS} FROM effects e WHERE e.actor = ?"
                query += " AND e.incarnation = ? AND e.is_open ORDER BY e.effect_id"
                effects = self._fetch(query, (name, incarnation), name)
        return StoredActor(
            actor=actor,
            incarnation=incarnation,
            version=0 if tombstoned else version,
            schema_version=schema_version,
            state=unseal(checksum, state, name),
            effects=tuple(map(decode.effect_row, effects)),
            event_sequence=sequence,
            tombstoned=bool(tombstoned),
        )

    def _read_chunks(self, name: str, count: int) -> bytes:
        query = "SELECT data FROM state_chunks WHERE actor = ? ORDER BY chunk"
        pieces = self._fetch(query, (name,), name)
        if len(pieces) != count:
            message = f"{name} has {len(pieces)} of {count} pieces of its state; restore a backup"
            raise CorruptionError(message, subject=name)
        return b"".join(piece for (piece,) in pieces)

    async def reply(self, actor: ActorId, method: str, key: str) -> StoredReply | None:
        """Return the kept reply for an idempotency key of the actor's living incarnation."""
        text_bytes("method", method)
        text_bytes("key", key)
        name = str(actor)
        row = self._fetch_one(
            "SELECT r.request, r.expires_ms, r.checksum, r.reply FROM replies r"
            f" JOIN actors a ON a.actor = r.actor AND {_LIVING.format('r')}"
            " WHERE r.actor = ? AND r.method = ? AND r.key = ? AND r.expires_ms > ?",
            (name, method, key, self._clock.now_ms()),
            name,
        )
        if row is None:
            return None
        return StoredReply(row[0], unseal(row[2], row[3], f"reply {key!r} of {name}"), row[1])

    # --- key-value ----------------------------------------------------------------------------

    async def kv_get(self, actor: ActorId, key: str) -> bytes | None:
        """Return one value."""
        text_bytes("key", key, KV_KEY_BYTES_MAX)
        name = str(actor)
        row = self._fetch_one(
            "SELECT k.checksum, k.value FROM actors a"
            f" JOIN kv k ON k.actor = a.actor AND {_LIVING.format('k')} AND k.key = ?"
            " WHERE a.actor = ?",
            (key, name),
            name,
        )
        return None if row is None else unseal(row[0], row[1], f"key {key!r} of {name}")

    async def kv_range(
        self, actor: ActorId, start: str, end: str, *, limit: int, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        """Return up to ``limit`` pairs with ``start <= key < end``, in key order."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        text_bytes("start", start, KV_KEY_BYTES_MAX)
        text_bytes("end", end)
        name = str(actor)
        rows = self._fetch(
            "SELECT k.key, k.checksum, k.value FROM actors a"
            f" JOIN kv k ON k.actor = a.actor AND {_LIVING.format('k')}"
            " WHERE a.actor = ? AND k.key >= ? AND k.key < ?"
            f" ORDER BY k.key {'DESC' if descending else 'ASC'} LIMIT ?",
            (name, start, end, limit),
            name,
        )
        return [(row[0], unseal(row[1], row[2], f"key {row[0]!r} of {name}")) for row in rows]

    # --- work ---------------------------------------------------------------------------------

    async def outbox(self, after_id: int, limit: int) -> list[StoredMessage]:
        """Return waiting messages with id > ``after_id``, by id, whatever their time."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        query = "SELECT message_id, sender, receiver, attempts, not_before_ms, checksum, body"
        query += " FROM outbox WHERE message_id > ? ORDER BY message_id LIMIT ?"
        return list(map(decode.stored_message, self._fetch(query, (after_id, limit), "outbox")))

    async def dead_letters(self, tenant: Tenant, limit: int) -> list[DeadLetter]:
        """Return the tenant's newest dead letters, newest first. A letter is its receiver's."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        query = "SELECT message_id, sender, receiver, attempts, error, at_ms, checksum, body"
        query += " FROM dead_letters WHERE tenant = ? ORDER BY at_ms DESC, message_id DESC LIMIT ?"
        return list(map(decode.dead_letter, self._fetch(query, (tenant, limit), "dead letters")))

    async def reminders_due(self, now_ms: int, limit: int) -> list[ReminderRow]:
        """Return reminders with ``due_ms <= now_ms``, earliest first."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        rows = self._fetch(
            "SELECT r.actor, r.name, r.due_ms, r.checksum, r.body FROM reminders r"
            f" CROSS JOIN actors a ON a.actor = r.actor AND {_LIVING.format('r')}"
            " WHERE r.due_ms <= ? ORDER BY r.due_ms, r.actor, r.name LIMIT ?",
            (now_ms, limit),
            "reminders",
        )
        return list(map(decode.reminder_row, rows))

    async def reminder_next_ms(self) -> int | None:
        """Return the earliest ``due_ms`` of any reminder."""
        row = self._fetch_one(
            "SELECT r.due_ms FROM reminders r"
            f" CROSS JOIN actors a ON a.actor = r.actor AND {_LIVING.format('r')}"
            " ORDER BY r.due_ms LIMIT 1",
            (),
            "reminders",
        )
        return None if row is None else int(row[0])

    async def effects_open(self, after_id: str, limit: int) -> list[EffectRow]:
        """Return effects in an open state with id > ``after_id``, by id."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        text_bytes("after_id", after_id)
        rows = self._fetch(
            f"SELECT {EFFECT_COLUMNS} FROM effects e INDEXED BY effects_open"
            f" CROSS JOIN actors a ON a.actor = e.actor AND {_LIVING.format('e')}"
            " WHERE e.is_open AND e.effect_id > ? ORDER BY e.effect_id LIMIT ?",
            (after_id, limit),
            "effects",
        )
        return list(map(decode.effect_row, rows))

    # --- effects ------------------------------------------------------------------------------

    async def effect(self, tenant: Tenant, effect_id: str) -> EffectRow | None:
        """Return one effect, in whatever state; those of deleted actors are gone."""
        text_bytes("effect_id", effect_id)
        row = self._fetch_one(
            f"SELECT {EFFECT_COLUMNS} FROM effects e"
            f" JOIN actors a ON a.actor = e.actor AND {_LIVING.format('e')}"
            " WHERE e.tenant = ? AND e.effect_id = ?",
            (tenant, effect_id),
            f"effect {effect_id}",
        )
        return None if row is None else decode.effect_row(row)

    async def effects(
        self, page: Page, *, states: Sequence[EffectState] = (), actor: ActorId | None = None
    ) -> list[EffectRow]:
        """Return effects by (created_ms, id); empty ``states`` means all.

        Raises:
            NotFoundError: A cursor names no effect of the tenant.
        """
        require_limit(page.limit, LIST_PAGE_ROWS_MAX)
        query = "SELECT created_ms FROM effects WHERE tenant = ? AND effect_id = ?"
        find = self._finder(page.tenant, query, "effect")
        sliced = slice_page(
            page, ("e.created_ms", "e.effect_id"), find(page.after), find(page.before)
        )
        where = " WHERE e.tenant = ?"
        values: list[object] = [page.tenant]
        if actor is not None:
            where += " AND e.actor = ?"
            values.append(str(actor))
        if states:
            where += f" AND e.state IN ({', '.join('?' * len(states))})"
            values += states
        rows = self._fetch(
            f"SELECT {EFFECT_COLUMNS} FROM effects e"
            f" CROSS JOIN actors a ON a.actor = e.actor AND {_LIVING.format('e')}"
            f"{where}{sliced.where}{sliced.order}",
            (*values, *sliced.values),
            "effects",
        )
        found = list(map(decode.effect_row, rows))
        return found[::-1] if sliced.is_reversed else found

    def _finder(
        self, tenant: Tenant, query: str, kind: str, *keys: str
    ) -> Callable[[str | None], Place | None]:
        """Return a function that finds a cursor's place with ``query``."""

        def find(item_id: str | None) -> Place | None:
            if item_id is None:
                return None
            text_bytes("cursor", item_id)
            row = self._fetch_one(query, (tenant, *keys, item_id), kind)
            if row is None:
                raise NotFoundError(kind, item_id)
            return Place(row[0], item_id)

        return find

    # --- events, lists, streams -----------------------------------------------------------------

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
        with self._snapshot(name):
            query = "SELECT event_sequence, event_floor FROM actors WHERE actor = ?"
            newest, floor = self._fetch_one(query, (name,), name) or (0, 0)
            _require_cursor(after, newest)
            if 0 < after < floor:
                message = f"events up to {floor} of {name} were removed; begin again with 0"
                raise CursorExpiredError(message, after=after, floor=floor)
            rows = self._fetch(
                "SELECT position, actor, sequence, at_ms, kind, checksum, body FROM events"
                " WHERE actor = ? AND sequence > ? ORDER BY sequence LIMIT ?",
                (name, max(after, floor), limit),
                name,
            )
        return list(map(decode.stored_event, rows))

    async def events_tail(
        self, tenant: Tenant, after_position: int, limit: int
    ) -> list[StoredEvent]:
        """Return all the tenant's events with position > ``after_position``, in commit order.

        Raises:
            CursorAheadError: ``after_position`` is beyond the newest event of the store.
        """
        require_limit(limit, EVENT_PAGE_ROWS_MAX)
        require_integers("after", after_position)
        with self._snapshot("events"):
            query = "SELECT value FROM counters WHERE name = 'event'"
            (newest,) = self._fetch_one(query, (), "counters") or (0,)
            _require_cursor(after_position, newest)
            rows = self._fetch(
                "SELECT e.position, e.actor, e.sequence, e.at_ms, e.kind, e.checksum, e.body"
                " FROM events e CROSS JOIN actors a ON a.actor = e.actor"
                " WHERE e.tenant = ? AND e.position > ? AND e.sequence > a.event_floor"
                " ORDER BY e.position LIMIT ?",
                (tenant, after_position, limit),
                "events",
            )
        return list(map(decode.stored_event, rows))

    async def list_page(self, collection: str, page: Page) -> list[ListItem]:
        """Return projection rows of the tenant in (sort_key, item_id) order.

        Raises:
            NotFoundError: A cursor names no item, and none that was removed lately.
        """
        require_limit(page.limit, LIST_PAGE_ROWS_MAX)
        text_bytes("collection", collection)
        query = "SELECT sort_key FROM lists WHERE tenant = ? AND collection = ? AND item_id = ?"
        find = self._finder(page.tenant, query, collection, collection)
        sliced = slice_page(page, ("l.sort_key", "l.item_id"), find(page.after), find(page.before))
        rows = self._fetch(
            "SELECT l.item_id, l.sort_key, l.owner, l.checksum, l.body FROM lists l"
            f" CROSS JOIN actors a ON a.actor = l.owner AND {_LIVING.format('l')}"
            " WHERE l.tenant = ? AND l.collection = ? AND l.deleted_ms IS NULL"
            f"{sliced.where}{sliced.order}",
            (page.tenant, collection, *sliced.values),
            collection,
        )
        found = list(map(decode.list_item, rows))
        return found[::-1] if sliced.is_reversed else found

    async def list_item(self, tenant: Tenant, collection: str, item_id: str) -> ListItem | None:
        """Return one projection row."""
        text_bytes("collection", collection)
        text_bytes("item_id", item_id)
        row = self._fetch_one(
            "SELECT l.item_id, l.sort_key, l.owner, l.checksum, l.body FROM lists l"
            f" JOIN actors a ON a.actor = l.owner AND {_LIVING.format('l')}"
            " WHERE l.tenant = ? AND l.collection = ? AND l.item_id = ? AND l.deleted_ms IS NULL",
            (tenant, collection, item_id),
            collection,
        )
        return None if row is None else decode.list_item(row)

    async def stream(
        self, actor: ActorId, effect_id: str, attempt: int, after: int, limit: int
    ) -> list[StreamChunk]:
        """Return chunks of one attempt with sequence > ``after``."""
        require_limit(limit, EVENT_PAGE_ROWS_MAX)
        text_bytes("effect_id", effect_id)
        require_integers("attempt", attempt, after)
        rows = self._fetch(
            "SELECT s.effect_id, s.attempt, s.sequence, s.kind, s.checksum, s.body FROM actors a"
            f" JOIN streams s ON s.actor = a.actor AND {_LIVING.format('s')}"
            " WHERE a.actor = ? AND s.effect_id = ? AND s.attempt = ? AND s.sequence > ?"
            " ORDER BY s.sequence LIMIT ?",
            (str(actor), effect_id, attempt, after, limit),
            str(actor),
        )
        return list(map(decode.stream_chunk, rows))

    # --- audit ----------------------------------------------------------------------------------

    async def audit(self, tenant: Tenant) -> AsyncIterator[AuditRecord]:
        """Yield the tenant's audit records, by shard and sequence."""
        shard, sequence = -1, 0
        while True:
            rows = self._fetch(
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
            rows = self._fetch(
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


def _require_cursor(after: int, newest: int) -> None:
    if after > newest:
        message = f"after is {after:,}, the newest event is {newest:,}; use a cursor you were given"
        raise CursorAheadError(message, after=after, newest=newest)
