"""Several nodes over one database: what was acknowledged is kept, whatever becomes of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import STATUS
from tests.e2e.cluster import faults
from tests.e2e.cluster.bed import PROGRAM, SETTLE_S, Bed, BedNode
from tests.e2e.cluster.chaos import run_chaos
from tests.postgres import make_server, shared_server
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.cluster.faults import Fault
    from tests.e2e.cluster.writing import Writers

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, shared_server())
    yield made
    made.close()


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Bed]:
    """A bed with a database server of its own, which may be ended."""
    database = make_server()
    database.start()
    made = Bed(tmp_path, database)
    yield made
    made.close()
    database.stop()


def draw_seed() -> int:
    """The seed given in the environment, or a new one; either is printed."""
    seed = int(os.environ.get("KELPIE_E2E_SEED") or random.SystemRandom().randrange(2**32))
    print(f"KELPIE_E2E_SEED={seed}")
    return seed


def check_history(bed: Bed, count: int, *chosen: Fault) -> None:
    """Fail unless the history of a cluster that these faults befell keeps every promise."""

    async def run() -> None:
        await bed.begin(count)

        async def happen(writers: Writers) -> None:
            for fault in chosen:
                await fault(bed, writers, draw.choice(bed.nodes))

        findings = await faults.judge_under_load(bed, seed, happen)
        print(findings)
        assert not findings.problems, str(findings)

    seed = draw_seed()
    draw = random.Random(seed)
    asyncio.run(run())


@pytest.mark.requirement("CLUSTER-ANY-NODE")
def test_two_nodes_share_the_shards_and_each_answers_for_every_actor(bed: Bed) -> None:
    asyncio.run(bed.begin(2))
    first, second = bed.nodes
    shared = asyncio.run(bed.shards())
    assert sorted(shared) == ["node1", "node2"]
    assert min(shared.values()) > sum(shared.values()) // 4, shared
    for number in range(16):
        told, asked = (first, second) if number % 2 else (second, first)
        body = {"number": number}
        assert told.server.post(f"/v1/actors/Register/a{number}/write", body) == {"result": 1}
        answer = asked.server.post(f"/v1/actors/Register/a{number}/read")
        assert answer == {"result": [number]}
    shown = first.node.ok("cluster", "status", KELPIE_URL=first.server.url)
    names = {each["name"]: each["state"] for each in shown["nodes"] if not each["ended_ms"]}
    assert names == {"node1": "running", "node2": "running"}


@pytest.mark.requirement("CLUSTER-HISTORY")
def test_an_owner_killed_under_load_costs_nothing_that_was_acknowledged(bed: Bed) -> None:
    check_history(bed, 3, faults.kill, faults.kill_and_start)


@pytest.mark.requirement("CLUSTER-HISTORY")
def test_an_owner_stopped_for_longer_than_its_lease_writes_nothing_when_it_goes_on(
    bed: Bed,
) -> None:
    check_history(bed, 2, faults.stop_for_long)


@pytest.mark.requirement("CLUSTER-HISTORY")
def test_nodes_restarted_one_after_the_other_under_load_lose_nothing(bed: Bed) -> None:
    async def run() -> None:
        await bed.begin(2)

        async def happen(writers: Writers) -> None:
            for node in bed.nodes:
                await faults.restart(bed, writers, node)

        findings = await faults.judge_under_load(bed, seed, happen)
        print(findings)
        assert not findings.problems, str(findings)

    seed = draw_seed()
    asyncio.run(run())


@pytest.mark.requirement("CLUSTER-HISTORY")
def test_a_database_restarted_under_load_costs_nothing_that_was_acknowledged(apart: Bed) -> None:
    chosen = (faults.restart_database, faults.crash_database, faults.take_database_away)
    check_history(apart, 2, *chosen)


@pytest.mark.requirement("CLUSTER-HISTORY")
def test_faults_by_chance_leave_a_history_that_keeps_every_promise(apart: Bed) -> None:
    findings = asyncio.run(run_chaos(apart, minutes=0.2, seed=draw_seed()))
    print(findings)
    assert not findings.problems, str(findings)
    assert findings.written > faults.FELT_WRITES


def refuse(bed: Bed, node: BedNode, **environment: str) -> dict[str, object]:
    """The error of a node that must not begin beside those of a bed, which go on."""
    begun = {each.name for each in bed.nodes}
    try:
        words = ("serve", str(PROGRAM), "--port", "1", "--store", bed.store, "--json")
        process = node.node.kelpie(*words, **node.environment, **environment)
        eventually(lambda: process.status is not None, within_s=SETTLE_S, what="the refusal")
        error: dict[str, object] = json.loads(process.err.splitlines()[-1])["error"]
        assert (process.status, process.out) == (STATUS[str(error["code"])].exit, ""), process.err
    finally:
        node.node.close()
    server = bed.nodes[0].server
    assert server.post("/v1/actors/Register/a/write", {"number": 1}) == {"result": 1}
    assert asyncio.run(bed.shards()).keys() == begun
    return error


@pytest.mark.requirement("CLUSTER-NAMES")
def test_a_second_node_of_one_name_is_refused_and_the_first_goes_on(
    bed: Bed, tmp_path: Path
) -> None:
    asyncio.run(bed.begin(1))
    error = refuse(bed, BedNode("node1", tmp_path / "other", bed.store))
    assert error["code"] == "conflict"
    assert "'node1'" in str(error["message"])


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
def test_a_node_with_another_secret_is_refused_before_it_owns_anything(
    bed: Bed, tmp_path: Path
) -> None:
    asyncio.run(bed.begin(1))
    stranger = BedNode("node2", tmp_path / "other", bed.store)
    secret = {"KELPIE_CLUSTER_SECRET": "env:OURS", "OURS": "one that the first does not know"}
    error = refuse(bed, stranger, **secret)
    assert error["code"] == "invalid_setting"
    assert "cluster.secret" in str(error["message"])
    assert secret["OURS"] not in str(error)
