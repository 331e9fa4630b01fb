"""Reads of what people page through: actors, effects and lists."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from collections.abc import Sequence

from kelpie.core.errors import NotFoundError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import LIST_PAGE_ROWS_MAX
from kelpie.storage import decode
from kelpie.storage.bounds import text_bytes
from kelpie.storage.decode import EFFECT_COLUMNS
from kelpie.storage.paging import Slice, SortPlace, require_limit, slice_page
from kelpie.storage.records import ActorRow, EffectRow, EffectState, ListItem, Page
from kelpie.storage.sql.reader import LIVING, SqlReader


class PageReads(SqlReader):
    """Reads in pages."""

    __slots__ = ()

    async def actors(
        self, tenant: Tenant, type_name: str, *, after: str, limit: int
    ) -> list[ActorRow]:
        """Return up to ``limit`` living actors of a type with a key above ``after``, by key."""
        require_limit(limit, LIST_PAGE_ROWS_MAX + 1)
        text_bytes("after", after)
        prefix = f"{tenant}/{type_name}/"
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = await self._fetch(
            "SELECT actor, incarnation, version, updated_ms FROM actors"
            " WHERE actor > ? AND actor < ? AND NOT tombstoned ORDER BY actor LIMIT ?",
            (prefix + after, end, limit),
            "actors",
        )
        return [ActorRow(decode.parse_actor(row[0]), *row[1:]) for row in rows]

    async def effect(self, tenant: Tenant, effect_id: str) -> EffectRow | None:
        """Return one effect, in whatever state; those of deleted actors are gone."""
        text_bytes("effect_id", effect_id)
        row = await self._fetch_one(
            f"SELECT {EFFECT_COLUMNS} FROM effects e"
            f" JOIN actors a ON a.actor = e.actor AND {LIVING.format('e')}"
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
        sliced = await self._slice(page, ("e.created_ms", "e.effect_id"), query, "effect")
        where = " WHERE e.tenant = ?"
        values: list[object] = [page.tenant]
        if actor is not None:
            where += " AND e.actor = ?"
            values.append(str(actor))
        if states:
            where += f" AND e.state IN ({', '.join('?' * len(states))})"
            values += states
        rows = await self._fetch(
            f"SELECT {EFFECT_COLUMNS} FROM effects e"
            f" {self.JOIN} actors a ON a.actor = e.actor AND {LIVING.format('e')}"
            f"{where}{sliced.where}{sliced.order}",
            (*values, *sliced.values),
            "effects",
        )
        found = list(map(decode.effect_row, rows))
        return found[::-1] if sliced.is_reversed else found

    async def _slice(
        self, page: Page, columns: tuple[str, str], query: str, kind: str, *keys: str
    ) -> Slice:
        """Return the SQL of a page whose cursors' places are found with ``query``."""

        async def find(item_id: str | None) -> SortPlace | None:
            if item_id is None:
                return None
            text_bytes("cursor", item_id)
            row = await self._fetch_one(query, (page.tenant, *keys, item_id), kind)
            if row is None:
                raise NotFoundError(kind, item_id)
            return SortPlace(row[0], item_id)

        return slice_page(page, columns, await find(page.after), await find(page.before))

    async def list_page(self, collection: str, page: Page) -> list[ListItem]:
        """Return projection rows of the tenant in (sort_key, item_id) order.

        Raises:
            NotFoundError: A cursor names no item, and none that was removed lately.
        """
        require_limit(page.limit, LIST_PAGE_ROWS_MAX)
        text_bytes("collection", collection)
        query = "SELECT sort_key FROM lists WHERE tenant = ? AND collection = ? AND item_id = ?"
        columns = ("l.sort_key", "l.item_id")
        sliced = await self._slice(page, columns, query, collection, collection)
        rows = await self._fetch(
            "SELECT l.item_id, l.sort_key, l.owner, l.checksum, l.body FROM lists l"
            f" {self.JOIN} actors a ON a.actor = l.owner AND {LIVING.format('l')}"
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
        row = await self._fetch_one(
            "SELECT l.item_id, l.sort_key, l.owner, l.checksum, l.body FROM lists l"
            f" JOIN actors a ON a.actor = l.owner AND {LIVING.format('l')}"
            " WHERE l.tenant = ? AND l.collection = ? AND l.item_id = ? AND l.deleted_ms IS NULL",
            (tenant, collection, item_id),
            collection,
        )
        return None if row is None else decode.list_item(row)
