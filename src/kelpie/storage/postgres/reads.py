"""The whole reading half of the store."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from typing import Final

from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import EVENT_PAGE_ROWS_MAX
from kelpie.storage import decode
from kelpie.storage.bounds import require_integers
from kelpie.storage.decode import EFFECT_COLUMNS
from kelpie.storage.paging import require_limit
from kelpie.storage.postgres.reader import PostgresReader
from kelpie.storage.protocol import StoreStats
from kelpie.storage.records import StoredActor, StoredEvent
from kelpie.storage.sealing import unseal
from kelpie.storage.sql.calls import CallReads
from kelpie.storage.sql.keys import KeyReads
from kelpie.storage.sql.logs import LogReads, require_cursor
from kelpie.storage.sql.work import WorkReads

# The open effects come as an array, so that the state comes once, and all of it from one snapshot.
_ACTOR: Final = (
    "SELECT a.incarnation, a.version, a.schema_version, a.event_sequence, a.tombstoned, a.checksum,"
    f" a.state, ARRAY(SELECT ROW({EFFECT_COLUMNS}) FROM effects e WHERE e.actor = a.actor"
    " AND e.incarnation = a.incarnation AND e.is_open AND NOT a.tombstoned ORDER BY e.effect_id)"
    " FROM actors a WHERE a.actor = ?"
)
# A position is (number << 20) | ordinal, where a transaction's number is its xid plus the base.
_BASE: Final = "(SELECT value::bigint FROM meta WHERE name = 'base')"
# Below the oldest transaction that has not ended, nothing can appear any more.
_SETTLED: Final = f"((pg_snapshot_xmin(pg_current_snapshot())::text::bigint + {_BASE}) << 20)"
_BEGUN: Final = f"((pg_snapshot_xmax(pg_current_snapshot())::text::bigint + {_BASE}) << 20)"
_TAIL: Final = (
    "SELECT e.position, e.actor, e.sequence, e.at_ms, e.kind, e.checksum, e.body"
    " FROM events e JOIN actors a ON a.actor = e.actor"
    f" WHERE e.tenant = ? AND e.position > ? AND e.position < {_SETTLED}"
    " AND e.sequence > a.event_floor ORDER BY e.position LIMIT ?"
)
_STATS: Final = """SELECT
    (SELECT count(*) FROM actors WHERE NOT tombstoned),
    (SELECT count(*) FROM effects WHERE is_open),
    (SELECT count(*) FROM outbox),
    (SELECT count(*) FROM reminders),
    (SELECT count(*) FROM events),
    (SELECT count(*) FROM dead_letters),
    (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
        WHERE relnamespace = 'kelpie'::regnamespace AND relkind = 'r'),
    coalesce((SELECT value FROM meta WHERE name = 'incarnation'), ''),
    EXISTS (SELECT FROM meta WHERE name = 'held'),
    (SELECT value::bigint FROM meta WHERE name = 'schema')"""


class PostgresReads(PostgresReader, LogReads, CallReads, KeyReads, WorkReads):
    """The reading half of the store.

    A session reads the work of its own shards; everything else is read across the cluster.
    """

    __slots__ = ()

    async def load(self, actor: ActorId) -> StoredActor | None:
        """Return the actor's last durable version, or None if it never existed.

        A deleted actor has version 0: what the next incarnation's first commit expects.

        Raises:
            CorruptionError: Its checksum does not match; the error names the actor.
        """
        name = str(actor)
        row = await self._fetch_one(_ACTOR, (name,), name)
        if row is None:
            return None
        incarnation, version, schema_version, sequence, tombstoned, checksum, state, effects = row
        return StoredActor(
            actor=actor,
            incarnation=incarnation,
            version=0 if tombstoned else version,
            schema_version=schema_version,
            state=unseal(checksum, state, name),
            effects=tuple(map(decode.effect_row, effects)),
            event_sequence=sequence,
            tombstoned=tombstoned,
        )

    async def events_tail(
        self, tenant: Tenant, after_position: int, limit: int
    ) -> list[StoredEvent]:
        """Return all the tenant's events with position > ``after_position``, in commit order.

        Events of a transaction are held back while an older one has not ended, so that no event
        ever appears before one that was returned.

        Raises:
            CursorAheadError: ``after_position`` belongs to no transaction that has begun.
        """
        require_limit(limit, EVENT_PAGE_ROWS_MAX)
        require_integers("after", after_position)
        rows = await self._fetch(_TAIL, (tenant, after_position, limit), "events")
        if not rows and after_position > 0:
            row = await self._fetch_one(f"SELECT {_BEGUN}", (), "events")
            assert row is not None, "the server knows its own transactions"
            require_cursor(after_position, row[0])
        return list(map(decode.stored_event, rows))

    async def message_horizon(self) -> int:
        """Return an id up to which every message that will ever be is visible."""
        row = await self._fetch_one(f"SELECT {_SETTLED} - 1", (), "the store")
        assert row is not None, "the server knows its own transactions"
        return int(row[0])

    async def stats(self) -> StoreStats:
        """Return counts and sizes, of one snapshot; scans indexes, so it grows with the store."""
        row = await self._fetch_one(_STATS, (), "the store")
        assert row is not None, "counting always gives a row"
        actors, effects_open, outbox, reminders, events, dead_letters, size_bytes, *rest = row
        incarnation, held, schema_version = rest
        return StoreStats(
            actors=actors,
            effects_open=effects_open,
            outbox=outbox,
            reminders=reminders,
            events=events,
            dead_letters=dead_letters,
            size_bytes=size_bytes,
            incarnation=incarnation,
            held=held,
            schema_version=schema_version,
        )
