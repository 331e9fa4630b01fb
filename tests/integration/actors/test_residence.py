"""What a resident actor costs, and what becomes of one that cannot be loaded."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from kelpie import Runtime
from kelpie.core.errors import CorruptionError
from kelpie.core.limits import RESIDENT_RECORD_BYTES
from tests.integration.actors.plain import Plain

ACTORS = 5_000


@pytest.mark.requirement("ACTOR-MEMORY")
async def test_an_idle_actor_costs_at_most_its_record_beside_its_state(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "kelpie.db", actors=[Plain]) as runtime:
        for i in range(1_000):
            await runtime.ref(Plain, f"warm-{i:06}").total()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for i in range(ACTORS):
            await runtime.ref(Plain, f"actor-{i:06}").total()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert runtime.engine.resident_count == ACTORS + 1_000
        assert (after - before) / ACTORS <= RESIDENT_RECORD_BYTES
        runtime.engine.check_invariants()


@pytest.mark.requirement("ACTOR-LOAD-FAILURE")
async def test_a_damaged_actor_fails_its_calls_and_is_never_reset(tmp_path: Path) -> None:
    path = tmp_path / "kelpie.db"
    async with Runtime.open(path, actors=[Plain]) as runtime:
        await runtime.ref(Plain, "a").add(5)
    with closing(sqlite3.connect(path)) as connection:
        (state,) = connection.execute("SELECT state FROM actors").fetchone()
        connection.execute("UPDATE actors SET state = ?", (b"\x00" * len(state),))
        connection.commit()
    async with Runtime.open(path, actors=[Plain]) as runtime:
        for _ in range(2):
            with pytest.raises(CorruptionError, match="default/Plain/a"):
                await runtime.ref(Plain, "a").add(1)
    with closing(sqlite3.connect(path)) as connection:
        (kept,) = connection.execute("SELECT state FROM actors").fetchone()
    assert kept == b"\x00" * len(state)
