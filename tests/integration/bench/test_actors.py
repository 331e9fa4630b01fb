"""The actors' benchmark on a store so small that a test can wait for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.actors_world import fill_counters, run_inside
from bench.counter import Counter
from bench.load import LoadError
from bench.peers import PeerError, make_environment
from bench.store_world import actor_at
from kelpie import Runtime

ACTORS = 300


def test_a_store_written_in_bulk_holds_counters_that_count(tmp_path: Path) -> None:
    path = tmp_path / "kelpie.db"
    fill_counters(path, actors=ACTORS, reminders=10)

    async def add() -> int:
        async with Runtime.open(path, actors=[Counter]) as runtime:
            return await runtime.ref(Counter, actor_at(ACTORS - 1).key).add(2)

    assert asyncio.run(add()) == 2


def test_the_part_about_residents_counts_every_actor(tmp_path: Path) -> None:
    fill_counters(tmp_path / "kelpie.db", actors=ACTORS, reminders=0)
    found = run_inside("million", tmp_path, BENCH_ACTORS=str(ACTORS))
    assert len(found["cold.p99"]) == len(found["resident.local.p99"])
    assert found["resident.rss"][0] > 0


def test_a_part_that_fails_is_an_error_and_not_a_figure(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nothing failed"):
        run_inside("nothing", tmp_path)


def test_a_peer_that_cannot_be_installed_says_so(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="pip"):
        make_environment(tmp_path / "peer", "no/such package")
