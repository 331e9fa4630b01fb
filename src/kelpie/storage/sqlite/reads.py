"""Reads of actors and of the work that waits, and the whole reading half of the store."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import sqlite3
from functools import partial

from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import INTEGER_MIN, KV_KEY_BYTES_MAX, LIST_PAGE_ROWS_MAX
from kelpie.ports.faults import fault
from kelpie.storage.bounds import text_bytes
from kelpie.storage.records import (
    REMINDERS_FIRST,
    DeadLetter,
    EffectRow,
    ReminderCursor,
    ReminderRow,
    StoredActor,
    StoredMessage,
    StoredReply,
)
from kelpie.storage.sqlite import decode
from kelpie.storage.sqlite.actor_reads import (
    fetch_actor,
    glance_at_actor,
    is_large,
    read_large_actor,
    stored_actor,
)
from kelpie.storage.sqlite.call_reads import CallReads
from kelpie.storage.sqlite.decode import EFFECT_COLUMNS
from kelpie.storage.sqlite.departures import SEALS, moved_error, seal_of
from kelpie.storage.sqlite.engine import translate_error, unseal
from kelpie.storage.sqlite.injected import engine_error
from kelpie.storage.sqlite.log_reads import LogReads
from kelpie.storage.sqlite.paging import require_limit
from kelpie.storage.sqlite.reader import LIVING


class SqliteReads(LogReads, CallReads):
    """The reading half of the store."""

    __slots__ = ()

    # --- actors -------------------------------------------------------------------------------

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
        query = f"{SEALS} WHERE actor = ?"
        if (row := self._reader.execute(query, (name,)).fetchone()) is not None:
            raise moved_error(seal_of(row))

    async def reply(self, actor: ActorId, method: str, key: str) -> StoredReply | None:
        """Return the kept reply for an idempotency key of the actor's living incarnation."""
        text_bytes("method", method)
        text_bytes("key", key)
        name = str(actor)
        row = self._fetch_one(
            "SELECT r.request, r.expires_ms, r.checksum, r.reply FROM replies r"
            f" JOIN actors a ON a.actor = r.actor AND {LIVING.format('r')}"
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
            f" JOIN kv k ON k.actor = a.actor AND {LIVING.format('k')} AND k.key = ?"
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
            f" JOIN kv k ON k.actor = a.actor AND {LIVING.format('k')}"
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

    async def dead_letters(
        self, tenant: Tenant, limit: int, *, type_name: str | None = None
    ) -> list[DeadLetter]:
        """Return the tenant's newest dead letters, newest first. A letter is its receiver's."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        query = "SELECT message_id, sender, receiver, attempts, error, at_ms, checksum, body"
        query += " FROM dead_letters WHERE tenant = ?"
        values: list[object] = [tenant]
        if type_name is not None:
            text_bytes("type", type_name)
            prefix = f"{tenant}/{type_name}/"
            query += " AND receiver > ? AND receiver < ?"
            values += [prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)]
        query += " ORDER BY at_ms DESC, message_id DESC LIMIT ?"
        rows = self._fetch(query, (*values, limit), "dead letters")
        return list(map(decode.dead_letter, rows))

    async def reminders_due(
        self, now_ms: int, limit: int, *, after: ReminderCursor = REMINDERS_FIRST
    ) -> list[ReminderRow]:
        """Return reminders with ``due_ms <= now_ms`` above ``after``, by (due, actor, name)."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        rows = self._fetch(
            "SELECT r.actor, r.name, r.due_ms, r.checksum, r.body FROM reminders r"
            f" CROSS JOIN actors a ON a.actor = r.actor AND {LIVING.format('r')}"
            " WHERE r.due_ms <= ? AND (r.due_ms, r.actor, r.name) > (?, ?, ?)"
            " ORDER BY r.due_ms, r.actor, r.name LIMIT ?",
            (now_ms, *after, limit),
            "reminders",
        )
        return list(map(decode.reminder_row, rows))

    async def reminder_next_ms(self, *, after_ms: int = INTEGER_MIN) -> int | None:
        """Return the earliest ``due_ms`` above ``after_ms``."""
        row = self._fetch_one(
            "SELECT r.due_ms FROM reminders r"
            f" CROSS JOIN actors a ON a.actor = r.actor AND {LIVING.format('r')}"
            " WHERE r.due_ms > ? ORDER BY r.due_ms LIMIT 1",
            (after_ms,),
            "reminders",
        )
        return None if row is None else int(row[0])

    async def effects_open(self, after_id: str, limit: int) -> list[EffectRow]:
        """Return effects in an open state with id > ``after_id``, by id."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        text_bytes("after_id", after_id)
        rows = self._fetch(
            f"SELECT {EFFECT_COLUMNS} FROM effects e INDEXED BY effects_open"
            f" CROSS JOIN actors a ON a.actor = e.actor AND {LIVING.format('e')}"
            " WHERE e.is_open AND e.effect_id > ? ORDER BY e.effect_id LIMIT ?",
            (after_id, limit),
            "effects",
        )
        return list(map(decode.effect_row, rows))
