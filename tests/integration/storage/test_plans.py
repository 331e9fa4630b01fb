"""Every read finds its rows through an index, in order, and never by walking a table."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import asyncpg

from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.records import Page
from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import Hand, SqliteEngine, actor_id, effect

if TYPE_CHECKING:
    from pathlib import Path

    from kelpie.storage.postgres.store import PostgresStore
    from kelpie.storage.sqlite.store import SqliteStore

SMALL = {"meta", "sessions", "shards"}  # tables that have as many rows as there are nodes or shards


async def read_everything(store: SqliteStore | PostgresStore) -> None:
    actor, page = actor_id("ada"), Page(tenant=TENANT_DEFAULT, limit=9)
    await store.load(actor)
    await store.reply(actor, "m", "k")
    await store.kv_get(actor, "k")
    await store.kv_range(actor, "a", "z", limit=9, descending=True)
    await store.outbox(0, 9)
    await store.dead_letters(TENANT_DEFAULT, 9)
    await store.reminders_due(1, 9)
    await store.reminder_next_ms()
    await store.effects_open("", 9)
    await store.effect(TENANT_DEFAULT, "e")
    await store.effects(page)
    await store.effects(page, states=("waiting",))
    await store.effects(page, actor=actor)
    await store.events(actor, 0, 9)
    await store.event_newest(actor)
    await store.events_tail(TENANT_DEFAULT, 0, 9)
    await store.list_page("c", page)
    await store.list_item(TENANT_DEFAULT, "c", "i")
    await store.stream(actor, "e", 1, 0, 9)
    assert [record async for record in store.audit(TENANT_DEFAULT)] == []
    assert [record async for record in store.audit_chain(1)] == []


async def test_no_read_walks_a_table_or_sorts(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path)
    statements: list[str] = []
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(effects=(effect(hand.actor),))
        store._reader.set_trace_callback(statements.append)
        await read_everything(store)
        store._reader.set_trace_callback(None)
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(selects) >= 20
    slow: list[tuple[str, str]] = []
    with closing(sqlite3.connect(engine.path)) as connection:
        for select in selects:
            for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {select}"):
                in_order = "USING INDEX" in step or "USING COVERING INDEX" in step
                if "TEMP B-TREE" in step or (step.startswith("SCAN") and not in_order):
                    slow.append((step, select))
    assert slow == []


class Steps:
    """Notes the plan of each statement that a connection runs, without reading tables at will."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.found: list[tuple[str, str, str]] = []

    async def note(self, query: str, arguments: tuple[object, ...]) -> None:
        (text,) = await self._connection.fetchrow(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
        self._walk(json.loads(text)[0]["Plan"], query)

    def _walk(self, node: dict[str, Any], query: str) -> None:
        self.found.append((node["Node Type"], node.get("Relation Name", ""), query))
        for child in node.get("Plans", ()):
            self._walk(child, query)


async def test_no_read_of_a_database_has_to_walk_a_table_or_to_sort(tmp_path: Path) -> None:
    engine = PostgresEngine(tmp_path)
    statements: list[tuple[str, tuple[object, ...]]] = []
    try:
        async with engine.opened() as store:
            await Hand(store).turn(effects=(effect(actor_id("ada")),))

            def record(query: asyncpg.LoggedQuery) -> None:
                statements.append((query.query, query.args))

            pool: Any = store._pool  # the driver's own, of which the store uses less
            connections = [await pool.acquire() for _ in range(pool.get_max_size())]
            for connection in connections:
                connection._con.add_query_logger(record)
                await pool.release(connection)
            await read_everything(store)
            async with pool.acquire() as connection:
                # Told that both cost very much, the planner does so only where no index helps.
                await connection.execute("SET enable_seqscan = off; SET enable_sort = off")
                steps = Steps(connection)
                for query, arguments in tuple(statements):
                    if query.startswith("SELECT"):
                        await steps.note(query, arguments)
    finally:
        await engine.discard()
    assert len({query for _, _, query in steps.found}) >= 20
    walked = [step for step in steps.found if step[0] == "Seq Scan" and step[1] not in SMALL]
    assert walked == []
    assert [step for step in steps.found if "Sort" in step[0]] == []
