"""Reads of what an actor keeps under keys of its own: its map, and replies."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from kelpie.core.ids import ActorId
from kelpie.core.limits import KV_KEY_BYTES_MAX, LIST_PAGE_ROWS_MAX
from kelpie.storage.bounds import text_bytes
from kelpie.storage.paging import require_limit
from kelpie.storage.records import StoredReply
from kelpie.storage.sealing import unseal
from kelpie.storage.sql.reader import INCARNATION, LIVING, SqlReader


class KeyReads(SqlReader):
    """Reads by key."""

    __slots__ = ()

    async def reply(self, actor: ActorId, method: str, key: str) -> StoredReply | None:
        """Return the kept reply for an idempotency key of the actor's living incarnation."""
        text_bytes("method", method)
        text_bytes("key", key)
        name = str(actor)
        row = await self._fetch_lone(
            "SELECT r.request, r.expires_ms, r.checksum, r.reply FROM replies r"
            f" JOIN actors a ON a.actor = r.actor AND {LIVING.format('r')}"
            " WHERE r.actor = ? AND r.method = ? AND r.key = ? AND r.expires_ms > ?",
            (name, method, key, self._clock.now_ms()),
            name,
        )
        if row is None:
            return None
        return StoredReply(row[0], unseal(row[2], row[3], f"reply {key!r} of {name}"), row[1])

    async def kv_get(self, actor: ActorId, key: str) -> bytes | None:
        """Return one value."""
        text_bytes("key", key, KV_KEY_BYTES_MAX)
        name = str(actor)
        row = await self._fetch_one(
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
        rows = await self._fetch(
            "SELECT k.key, k.checksum, k.value FROM kv k"
            f" WHERE k.actor = ? AND k.incarnation = {INCARNATION} AND k.key >= ? AND k.key < ?"
            f" ORDER BY k.key {'DESC' if descending else 'ASC'} LIMIT ?",
            (name, name, start, end, limit),
            name,
        )
        return [(row[0], unseal(row[1], row[2], f"key {row[0]!r} of {name}")) for row in rows]
