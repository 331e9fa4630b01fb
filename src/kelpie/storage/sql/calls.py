"""Reads of submitted calls and of pauses."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import LIST_PAGE_ROWS_MAX
from kelpie.storage import decode
from kelpie.storage.bounds import text_bytes
from kelpie.storage.decode import CALL_COLUMNS, CALL_HEAD_COLUMNS
from kelpie.storage.paging import require_limit
from kelpie.storage.records import CallState, Page, StoredCall, StoredPause
from kelpie.storage.sql.pages import PageReads


class CallReads(PageReads):
    """Reads of calls. An ended call counts until it expires."""

    __slots__ = ()

    async def call(self, tenant: Tenant, call_id: str) -> StoredCall | None:
        """Return one call, unless its end has expired."""
        text_bytes("call_id", call_id)
        row = await self._fetch_one(
            f"SELECT {CALL_COLUMNS} FROM calls c WHERE c.tenant = ? AND c.call_id = ?"
            " AND NOT c.expires_ms BETWEEN 1 AND ?",
            (tenant, call_id, self._clock.now_ms()),
            f"call {call_id}",
        )
        return None if row is None else decode.stored_call(row)

    async def calls(
        self, page: Page, *, state: CallState | None = None, actor: ActorId | None = None
    ) -> list[StoredCall]:
        """Return calls by (created_ms, id), without their bodies.

        Raises:
            NotFoundError: A cursor names no call of the tenant.
        """
        require_limit(page.limit, LIST_PAGE_ROWS_MAX)
        query = "SELECT created_ms FROM calls WHERE tenant = ? AND call_id = ?"
        sliced = await self._slice(page, ("c.created_ms", "c.call_id"), query, "call")
        where = " WHERE c.tenant = ? AND NOT c.expires_ms BETWEEN 1 AND ?"
        values: list[object] = [page.tenant, self._clock.now_ms()]
        if actor is not None:
            where += " AND c.actor = ?"
            values.append(str(actor))
        if state is not None:
            where += " AND c.state = ?"
            values.append(state)
        rows = await self._fetch(
            f"SELECT {CALL_HEAD_COLUMNS} FROM calls c{where}{sliced.where}{sliced.order}",
            (*values, *sliced.values),
            "calls",
        )
        found = list(map(decode.call_head, rows))
        return found[::-1] if sliced.is_reversed else found

    async def pauses(self) -> list[StoredPause]:
        """Return every paused actor of the store, by name."""
        query = "SELECT actor, principal, at_ms FROM pauses ORDER BY actor"
        return [
            StoredPause(decode.parse_actor(actor), principal, at_ms)
            for actor, principal, at_ms in await self._fetch(query, (), "pauses")
        ]
