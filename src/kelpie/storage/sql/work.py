"""Reads of the work that waits: messages, reminders, open effects.

A session reads the work of its own shards. Dead letters are people's, and come from all of them.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from kelpie.core.ids import Tenant
from kelpie.core.limits import INTEGER_MIN, LIST_PAGE_ROWS_MAX
from kelpie.storage import decode
from kelpie.storage.bounds import text_bytes
from kelpie.storage.decode import EFFECT_COLUMNS
from kelpie.storage.paging import require_limit
from kelpie.storage.records import (
    REMINDERS_FIRST,
    DeadLetter,
    EffectRow,
    ReminderCursor,
    ReminderRow,
    StoredMessage,
)
from kelpie.storage.sql.reader import LIVING, SqlReader


class WorkReads(SqlReader):
    """Reads of what recovery, the outbox pump and the timers drive."""

    __slots__ = ()

    async def outbox(self, after_id: int, limit: int) -> list[StoredMessage]:
        """Return waiting messages with id > ``after_id``, by id, whatever their time.

        Of receivers whose shards this session owns.
        """
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        query = "SELECT message_id, sender, receiver, attempts, not_before_ms, checksum, body"
        own = self._own("receiver_shard")
        query += f" FROM outbox WHERE message_id > ?{own.where} ORDER BY message_id LIMIT ?"
        rows = await self._fetch(query, (after_id, *own.values, limit), "outbox")
        return list(map(decode.stored_message, rows))

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
        rows = await self._fetch(query, (*values, limit), "dead letters")
        return list(map(decode.dead_letter, rows))

    async def reminders_due(
        self, now_ms: int, limit: int, *, after: ReminderCursor = REMINDERS_FIRST
    ) -> list[ReminderRow]:
        """Return reminders with ``due_ms <= now_ms`` above ``after``, by (due, actor, name)."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        own = self._own("r.shard")
        rows = await self._fetch(
            "SELECT r.actor, r.name, r.due_ms, r.checksum, r.body FROM reminders r"
            f" {self.JOIN} actors a ON a.actor = r.actor AND {LIVING.format('r')}"
            f" WHERE r.due_ms <= ? AND (r.due_ms, r.actor, r.name) > (?, ?, ?){own.where}"
            " ORDER BY r.due_ms, r.actor, r.name LIMIT ?",
            (now_ms, *after, *own.values, limit),
            "reminders",
        )
        return list(map(decode.reminder_row, rows))

    async def reminder_next_ms(self, *, after_ms: int = INTEGER_MIN) -> int | None:
        """Return the earliest ``due_ms`` above ``after_ms``."""
        own = self._own("r.shard")
        row = await self._fetch_one(
            "SELECT r.due_ms FROM reminders r"
            f" {self.JOIN} actors a ON a.actor = r.actor AND {LIVING.format('r')}"
            f" WHERE r.due_ms > ?{own.where} ORDER BY r.due_ms LIMIT 1",
            (after_ms, *own.values),
            "reminders",
        )
        return None if row is None else int(row[0])

    async def effects_open(self, after_id: str, limit: int) -> list[EffectRow]:
        """Return effects in an open state with id > ``after_id``, by id."""
        require_limit(limit, LIST_PAGE_ROWS_MAX)
        text_bytes("after_id", after_id)
        own = self._own("e.shard")
        rows = await self._fetch(
            f"SELECT {EFFECT_COLUMNS} FROM effects e{self.OPEN_EFFECTS}"
            f" {self.JOIN} actors a ON a.actor = e.actor AND {LIVING.format('e')}"
            f" WHERE e.is_open AND e.effect_id > ?{own.where} ORDER BY e.effect_id LIMIT ?",
            (after_id, *own.values, limit),
            "effects",
        )
        return list(map(decode.effect_row, rows))
