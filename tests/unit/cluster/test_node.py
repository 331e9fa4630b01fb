"""Nodes join, leave, crash, are cut off and come back, in the simulator's time."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import pytest

from kelpie.cluster.placement import apart_rule
from kelpie.core.errors import ConflictError, InvalidFieldError
from kelpie.core.limits import CLOCK_RATE_PPM_MAX, LEASE_MARGIN_PARTS, SHARD_MOVES_MAX
from kelpie.storage.sqlite.nodes import renew
from tests.unit.cluster.world import LATENCY_S, TTL_S, Cluster, Machine, run

pytestmark = pytest.mark.requirement("CLUSTER-MEMBERS")

MARGIN_S = TTL_S / LEASE_MARGIN_PARTS


@pytest.mark.requirement("K-01")
def test_three_nodes_that_join_share_the_shards() -> None:
    async def main() -> None:
        cluster = Cluster()
        machines = await cluster.started("a", "b", "c")
        await cluster.passed(TTL_S)
        load = Counter(cluster.owners().values())
        assert {machine.name: len(machine.shards) for machine in machines} == load
        assert set(load) == {"a", "b", "c"}
        assert [machine.node.status.state for machine in machines] == ["running"] * 3
        for machine in machines:
            elsewhere = {k: v for k, v in cluster.owners().items() if v != machine.name}
            seen = {shard: machine.ownership.owner(shard) for shard in elsewhere}
            assert seen == {shard: f"{name}:1" for shard, name in elsewhere.items()}

    run(main)


def test_a_node_owns_nothing_before_it_is_ready() -> None:
    async def main() -> None:
        cluster = Cluster()
        machine = cluster.machine("a")
        await machine.node.start()
        await cluster.passed(TTL_S)
        assert machine.shards == frozenset()
        assert cluster.tables.view().nodes[0].state == "initializing"
        machine.node.ready()
        await cluster.settled(within_s=1)
        assert len(machine.shards) == 32

    run(main)


@pytest.mark.requirement("CLUSTER-LEASE", "K-02")
def test_the_shards_of_a_node_that_died_are_served_again_within_two_lease_times() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b, _ = await cluster.started("a", "b", "c")
        had = a.shards
        await a.die()
        took_s = await cluster.until(
            lambda: all(cluster.owners()[shard] in {"b", "c"} for shard in had)
        )
        assert took_s < 2 * TTL_S + 0.5
        await cluster.settled()
        ended = [node.name for node in cluster.tables.view().nodes if node.ended_ms]
        assert ended == ["a"]
        assert b.telemetry.counts.get("kelpie.cluster.sessions_ended", 0) <= 1

    run(main)


@pytest.mark.requirement("CLUSTER-LEASE", "K-17")
def test_a_node_cut_off_stops_answering_before_another_serves_its_shards() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, _, _ = await cluster.started("a", "b", "c")
        had, session = a.shards, a.node.status.session
        a.store.is_cut = True
        await cluster.until(lambda: not a.answers)
        assert cluster.owners().items() >= dict.fromkeys(had, "a").items()
        await cluster.until(lambda: "a" not in cluster.owners().values())
        assert not a.answers
        a.store.is_cut = False
        await cluster.until(lambda: a.node.status.session != session)
        await cluster.settled()
        assert a.shards == had
        assert cluster.tables.run(partial(renew, session=session)).code == "session_ended"

    run(main)


def test_a_short_absence_of_the_store_costs_nobody_anything() -> None:
    async def main() -> None:
        cluster = Cluster()
        machines = await cluster.started("a", "b")
        before = {m.name: (m.node.status.session, m.ownership.grants()) for m in machines}
        for machine in machines:
            machine.store.is_cut = True
        await cluster.passed(TTL_S * 0.5)
        for machine in machines:
            machine.store.is_cut = False
        await cluster.passed(3 * TTL_S)
        after = {m.name: (m.node.status.session, m.ownership.grants()) for m in machines}
        assert after == before
        assert all(machine.answers for machine in machines)

    run(main)


def test_a_store_away_for_long_is_found_again_with_everything_as_it_was() -> None:
    async def main() -> None:
        cluster = Cluster()
        machines = await cluster.started("a", "b")
        sessions = [machine.node.status.session for machine in machines]
        for machine in machines:
            machine.store.is_cut = True
        await cluster.passed(5 * TTL_S)
        assert not any(machine.answers for machine in machines)
        for machine in machines:
            machine.store.is_cut = False
        await cluster.passed(3 * TTL_S)
        await cluster.settled()
        assert [machine.node.status.session for machine in machines] == sessions
        assert all(machine.answers for machine in machines)

    run(main)


@pytest.mark.requirement("K-02")
def test_leave_returns_once_every_shard_was_brought_to_rest_and_let_go() -> None:
    async def main() -> None:
        cluster = Cluster(shards=64)
        a, b = await cluster.started("a", "b")
        had = a.shards
        assert len(had) > SHARD_MOVES_MAX
        a.handed.clear()
        await a.node.leave()
        assert frozenset().union(*a.handed) == had
        assert max(map(len, a.handed)) <= SHARD_MOVES_MAX
        assert a.node.status.state == "stopped"
        assert not a.answers
        await cluster.until(lambda: set(cluster.owners().values()) == {"b"}, within_s=0.5)
        assert b.handed == []
        await a.node.leave()
        ended = [node.name for node in cluster.tables.view().nodes if node.ended_ms]
        assert ended == ["a"]

    run(main)


def test_a_planned_move_leaves_a_shard_unowned_for_a_few_trips_to_the_store_only() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b = await cluster.started("a", "b")
        unowned_s: list[float] = []
        lost_s: dict[int, float] = {}
        now_s = asyncio.get_running_loop().time
        a.ownership.listen(lost=lambda shards: lost_s.update(dict.fromkeys(shards, now_s())))
        b.ownership.listen(
            gained=lambda shards: unowned_s.extend(now_s() - lost_s[shard] for shard in shards)
        )
        had = a.shards
        await a.node.leave()
        await cluster.settled()
        assert len(unowned_s) == len(had)
        assert max(unowned_s) < 10 * LATENCY_S

    run(main)


def test_a_node_cut_off_can_leave_once_its_lease_has_run_out() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, _ = await cluster.started("a", "b")
        a.store.is_cut = True
        begun_s = asyncio.get_running_loop().time()
        await a.node.leave()
        assert asyncio.get_running_loop().time() - begun_s <= TTL_S
        assert a.shards == frozenset()
        await cluster.until(lambda: set(cluster.owners().values()) == {"b"}, within_s=2 * TTL_S)

    run(main)


@pytest.mark.requirement("K-01")
def test_a_second_node_of_one_name_is_refused_and_the_first_goes_on() -> None:
    async def main() -> None:
        cluster = Cluster()
        (a,) = await cluster.started("a")
        session = a.node.status.session
        other = cluster.machine("a")
        with pytest.raises(ConflictError, match="another name"):
            await other.node.start()
        assert other.node.status.state == "stopped"
        with pytest.raises(ConflictError):
            await other.node.gone()
        await cluster.passed(2 * TTL_S)
        assert a.node.status.session == session
        assert len(a.shards) == 32

    run(main)


def test_a_node_that_comes_back_after_a_crash_waits_for_its_own_lease_to_end() -> None:
    async def main() -> None:
        cluster = Cluster()
        (a,) = await cluster.started("a")
        await a.die()
        again = cluster.machine("a")
        begun_s = asyncio.get_running_loop().time()
        await again.start()
        waited_s = asyncio.get_running_loop().time() - begun_s
        assert TTL_S <= waited_s <= 2 * TTL_S
        await cluster.settled()
        assert len(again.shards) == 32

    run(main)


def test_a_drained_node_keeps_running_without_shards_and_gets_them_back() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b = await cluster.started("a", "b")
        had = a.shards
        await b.store.cordon("a", is_cordoned=True, is_draining=True)
        await cluster.until(lambda: not a.shards)
        assert a.node.status.state == "running"
        await b.store.cordon("a", is_cordoned=False, is_draining=False)
        await cluster.settled()
        assert a.shards == had

    run(main)


def test_a_drained_node_that_loses_its_session_stays_drained() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b = await cluster.started("a", "b")
        await b.store.cordon("a", is_cordoned=True, is_draining=True)
        await cluster.until(lambda: not a.shards)
        session = a.node.status.session
        a.store.is_cut = True
        await cluster.passed(2 * TTL_S)
        a.store.is_cut = False
        await cluster.until(lambda: a.node.status.session != session)
        await cluster.passed(TTL_S)
        assert a.shards == frozenset()
        assert a.node.status.state == "running"

    run(main)


def test_a_cordoned_node_takes_nothing_from_a_node_that_leaves() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b, c = await cluster.started("a", "b", "c")
        had = c.shards
        await a.store.cordon("c", is_cordoned=True, is_draining=False)
        await cluster.passed(TTL_S)
        await a.node.leave()
        await cluster.settled()
        assert c.shards == had
        assert len(b.shards) == 32 - len(had)

    run(main)


def test_pinned_and_separated_shards_go_where_they_are_wanted() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b, c = await cluster.started("a", "b", "c")
        moved = min(a.shards)
        await b.store.pin(moved, "b")
        for shard in (10, 11, 12):
            await b.store.pin(shard, apart_rule("x"))
        await cluster.until(lambda: moved in b.shards)
        await cluster.settled()
        owners = cluster.owners()
        assert {owners[shard] for shard in (10, 11, 12)} == {"a", "b", "c"}
        await b.die()
        await cluster.until(lambda: moved in a.shards | c.shards)

    run(main)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_lost_answers_lose_no_shard(count: int) -> None:
    async def main() -> None:
        cluster = Cluster()
        machines = [cluster.machine(name) for name in "abc"]
        for machine in machines:
            machine.store.lose = count
            await machine.start()
            machine.store.lose = count
        await cluster.settled()
        machines[1].store.lose = count
        await machines[1].node.leave()
        await cluster.settled()
        assert set(cluster.owners().values()) == {"a", "c"}

    run(main)


@pytest.mark.requirement("CLUSTER-LEASE", "K-09")
@pytest.mark.parametrize("fast", ["a", "b"])
def test_clocks_that_drift_as_far_as_allowed_never_let_two_nodes_answer(fast: str) -> None:
    async def main() -> None:
        cluster = Cluster()
        rates = {"a": -CLOCK_RATE_PPM_MAX, "b": -CLOCK_RATE_PPM_MAX, fast: CLOCK_RATE_PPM_MAX}
        a, b = (cluster.machine(name, rate_ppm=rates[name]) for name in "ab")
        await a.start()
        await b.start()
        await cluster.settled()
        a.store.is_cut = True
        await cluster.until(lambda: not a.answers)
        waited_s = await cluster.until(lambda: "a" not in cluster.owners().values())
        assert waited_s > MARGIN_S
        a.store.is_cut = False
        await cluster.settled()

    run(main)


def test_a_shard_whose_commit_was_fenced_is_given_up_and_found_again() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b = await cluster.started("a", "b")
        shard = min(a.shards)
        a.ownership.lose([shard])
        assert shard not in a.shards
        await cluster.until(lambda: shard in a.shards | b.shards)
        await cluster.settled()
        assert shard in a.shards

    run(main)


def test_a_hand_over_that_fails_still_gives_the_shards_away() -> None:
    async def main() -> None:
        cluster = Cluster()
        (a,) = await cluster.started("a")
        a.has_bug = True
        b = cluster.machine("b")
        await b.start()
        await cluster.until(lambda: len(b.shards) > 0)
        await cluster.settled()
        assert a.telemetry.counts["kelpie.task.failures"] >= 1

    run(main)


def test_a_suspended_watcher_ends_nobodys_session() -> None:
    async def main() -> None:
        cluster = Cluster()
        a, b = await cluster.started("a", "b")
        sessions = {m.name: m.node.status.session for m in (a, b)}
        b.machine_clock.jump_forward(round(10 * TTL_S * 1e9))
        await cluster.passed(3 * TTL_S)
        await cluster.settled()
        assert a.node.status.session == sessions["a"]

    run(main)


def test_a_name_that_could_be_a_rule_is_no_name() -> None:
    async def main() -> None:
        with pytest.raises(InvalidFieldError, match="node"):
            Machine(Cluster(), "apart:x")

    run(main)
