"""Every read finds its rows through an index, in order, and never by walking a table."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.records import Page
from tests.contract.store.world import Hand, SqliteEngine, actor_id, effect

if TYPE_CHECKING:
    from pathlib import Path

    from kelpie.storage.sqlite.store import SqliteStore


async def read_everything(store: SqliteStore) -> None:
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
