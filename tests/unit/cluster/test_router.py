"""Calls from any node: forwarded, redirected, repeated under one key, and ended in time."""

from __future__ import annotations

import asyncio
import random

import pytest

from kelpie.cluster.messages import ActorCall
from kelpie.core.errors import (
    BusyError,
    DeadlineError,
    DrainingError,
    InvalidFieldError,
    NotOwnerError,
)
from kelpie.sim.faults.plan import FaultPlan, FaultRule
from tests.unit.cluster.talkers import ACTOR, TURN_S, Add, Cluster, Show, Total, pass_time, simulate


@pytest.mark.requirement("CLUSTER-ANY-NODE")
def test_any_node_answers_for_any_actor_with_typed_replies() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        assert await one.router.call(ACTOR, Add(3), principal="user:x") == Total(3)
        assert await two.router.call(ACTOR, Add(4), principal="user:y") == Total(7)
        assert await three.router.query(ACTOR, Show()) == Total(7)
        assert await three.router.call(ACTOR, Add(1), principal="p", internal=True) == Total(8)
        assert two.local.principals == ["user:x", "user:y", "p"]
        assert two.local.internal == [False, False, True]
        assert one.lines.is_open(two.address)
        assert not one.lines.is_open(three.address)

    simulate(work)


@pytest.mark.requirement("CLUSTER-ANY-NODE")
def test_one_redirect_is_followed_at_once() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        cluster.give(three)
        cluster.tell(two, one)
        cluster.tell(three, two)
        assert await one.router.call(ACTOR, Add(3), principal="p") == Total(3)
        assert one.telemetry.counts["kelpie.rpc.retries"] == 1

    assert simulate(work) < TURN_S + 0.05


def test_a_call_waits_while_nobody_owns_the_shard_and_ends_in_back_pressure() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        asking = asyncio.gather(one.router.call(ACTOR, Add(5), principal="p", timeout_ms=10_000))
        await pass_time(3)
        cluster.give(two)
        cluster.tell(two)
        assert list(await asking) == [Total(5)]
        cluster.give(None)
        with pytest.raises(NotOwnerError):
            await one.router.call(ACTOR, Add(5), principal="p", timeout_ms=2_000)
        with pytest.raises(NotOwnerError):
            await two.router.query(ACTOR, Show(), timeout_ms=2_000)
        assert cluster.ledger.ran == {5: 1}

    assert simulate(work) < 8


@pytest.mark.requirement("CLUSTER-FORWARDED-ONCE")
def test_a_line_cut_while_the_owner_works_runs_the_command_once() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        await one.router.query(ACTOR, Show())
        asking = asyncio.gather(one.router.call(ACTOR, Add(9), principal="p"))
        await pass_time(TURN_S / 2)
        cluster.links.partition(["n1"], ["n2"])
        await pass_time(8)
        assert cluster.ledger.ran == {9: 1}
        cluster.links.heal()
        assert list(await asking) == [Total(9)]
        assert cluster.ledger.ran == {9: 1}

    simulate(work)


def test_what_may_have_happened_ends_as_a_deadline_that_says_so() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        await one.router.query(ACTOR, Show())
        asking = asyncio.gather(
            one.router.call(ACTOR, Add(9), principal="p", timeout_ms=9_000), return_exceptions=True
        )
        await pass_time(TURN_S / 2)
        cluster.links.partition(["n1"], ["n2"])
        (error,) = await asking
        assert isinstance(error, DeadlineError)
        assert "outcome may follow" in error.message
        assert cluster.ledger.ran == {9: 1}
        with pytest.raises(NotOwnerError):
            await one.router.call(ACTOR, Add(8), principal="p", timeout_ms=1_000)
        assert cluster.ledger.ran == {9: 1}

    simulate(work)


def test_a_local_actor_that_moves_under_a_call_is_found_at_its_new_owner() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(one)
        asking = asyncio.gather(one.router.call(ACTOR, Add(2), principal="p"))
        await pass_time(TURN_S / 2)
        cluster.give(two)
        cluster.tell(two)
        assert list(await asking) == [Total(2)]
        assert cluster.ledger.ran == {2: 1}

    simulate(work)


def test_an_owner_that_shuts_down_is_asked_again_until_its_shards_have_moved() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        await two.supervisor.close()
        asking = asyncio.gather(one.router.call(ACTOR, Add(2), principal="p"))
        await pass_time(1)
        cluster.give(three)
        cluster.tell(three, one, two)
        assert list(await asking) == [Total(2)]
        one.local.is_accepting = False
        assert not one.router.accepting()
        with pytest.raises(DrainingError):
            await one.router.call(ACTOR, Add(2), principal="p")
        with pytest.raises(DrainingError):
            one.router.begin(ACTOR, Add(2), principal="p", timeout_ms=100, is_query=False)

    simulate(work)


def test_what_was_begun_is_answered_by_whoever_owns_the_actor() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        command = one.router.begin(ACTOR, Add(6), principal="p", timeout_ms=900, is_query=False)
        assert command.error is not None
        assert await one.router.answer(command, 900) == Total(6)
        asked = one.router.begin(ACTOR, Show(), principal="", timeout_ms=900, is_query=True)
        assert await one.router.answer(asked, 900) == Total(6)
        here = two.router.begin(ACTOR, Show(), principal="", timeout_ms=900, is_query=True)
        assert await two.router.answer(here, 900) == Total(6)

    simulate(work)


def test_what_the_owner_refuses_comes_back_as_it_said_it_and_is_not_repeated() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        body = ActorCall(actor=str(ACTOR), message=b"\xc1", principal="p", key="k")
        with pytest.raises(InvalidFieldError, match="message"):
            await one.lines.ask(two.address, body, timeout_ms=1_000)
        with pytest.raises(NotOwnerError) as moved:
            await one.lines.ask(three.address, body, timeout_ms=1_000)
        assert moved.value.fields["owner"] == two.address
        lost = ActorCall(actor="no actor", message=b"", principal="p", key="k")
        with pytest.raises(InvalidFieldError, match="actor"):
            await one.lines.ask(two.address, lost, timeout_ms=1_000)
        assert "kelpie.rpc.retries" not in one.telemetry.counts

    simulate(work)


@pytest.mark.requirement("CLUSTER-FORWARDED-ONCE")
@pytest.mark.parametrize("seed", range(12))
def test_numbered_commands_happen_once_through_cuts_resets_and_moves(seed: int) -> None:
    names = (
        "network.delay",
        "network.message_reorder",
        "network.packet_loss",
        "network.reset",
        "network.refused",
    )
    rules = [FaultRule(name=name, rate=0.03, count_max=30) for name in names]
    plan = FaultPlan(rules, seed=seed, now_ns=lambda: 0)
    acknowledged: list[int] = []

    async def client(cluster: Cluster, number: int) -> None:
        node = cluster.nodes[number % 3]
        try:
            await node.router.call(ACTOR, Add(number), principal="p", timeout_ms=20_000)
        except BusyError:
            return
        acknowledged.append(number)

    async def work(cluster: Cluster) -> None:
        rng = random.Random(seed)
        cluster.give(cluster.nodes[0])
        cluster.tell(cluster.nodes[0])
        async with asyncio.TaskGroup() as clients:
            for number in range(1, 61):
                clients.create_task(client(cluster, number))
                await pass_time(0.1)
                if number % 7 == 0:
                    owner = rng.choice(cluster.nodes)
                    cluster.give(owner)
                    cluster.tell(owner)
                if number % 11 == 0:
                    one, other = rng.sample(["n1", "n2", "n3"], 2)
                    cluster.links.cut(one, other)
                if number % 11 == 5:
                    cluster.links.heal()
            cluster.links.heal()
        ran = cluster.ledger.ran
        assert all(count == 1 for count in ran.values()), ran
        assert set(acknowledged) <= set(ran)
        assert cluster.ledger.amount == sum(ran)
        assert len(acknowledged) >= 40

    simulate(work, plan)


# --- hints --------------------------------------------------------------------------------------


def test_messages_for_another_nodes_actors_are_announced_to_their_owner() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        await one.router.query(ACTOR, Show())
        one.hints.wake([ACTOR.shard, ACTOR.shard], 42)
        await pass_time(1)
        assert two.woken == [([ACTOR.shard], 42)]
        assert three.woken == []

    simulate(work)


@pytest.mark.requirement("CLUSTER-NEWS")
def test_readers_on_other_nodes_are_woken_by_the_owner_also_after_a_move() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        with one.hub.watch(ACTOR) as reader:
            await pass_time(1)
            two.hints.changed(ACTOR)
            two.hints.changed(ACTOR)
            assert await reader.wait(1)
            assert not await reader.wait(1)
            cluster.give(three)
            cluster.tell(three)
            one.hints.point([two.address, three.address])
            await pass_time(1)
            three.hints.changed(ACTOR)
            assert await reader.wait(1)
        await pass_time(1)
        with one.hub.watch() as reader:
            one.hints.point([two.address, three.address])
            await pass_time(1)
            two.hints.changed(ACTOR)
            assert await reader.wait(1)
        await pass_time(1)
        one.lines.close()
        await pass_time(1)
        for node in cluster.nodes:
            node.hints.check_invariants()
        two.hints.changed(ACTOR)

    simulate(work)
