"""Lines in virtual time: silence, late greetings, deadlines, two versions, one line a peer."""

from __future__ import annotations

import asyncio

import pytest

from kelpie.cluster.handshake import GreetingError, Identity
from kelpie.cluster.messages import ActorCall, ActorQuery, Versions, encode
from kelpie.core import limits
from kelpie.core.errors import DeadlineError
from kelpie.ports.frames import FrameLink
from kelpie.ports.network import NetworkError
from tests.unit.cluster.talkers import (
    ACTOR,
    SECRET,
    TURN_S,
    Add,
    Cluster,
    ClusterNode,
    Show,
    Total,
    pass_time,
    simulate,
)

SILENT_S = (limits.HEARTBEAT_TIMEOUT_MS + limits.HEARTBEAT_INTERVAL_MS) / 1_000


def as_version(node: ClusterNode, versions: Versions) -> None:
    who = Identity(cluster="c1", node=node.name, secret=SECRET, versions=versions)
    node.lines._identity = node.listener._identity = who


@pytest.mark.requirement("CLUSTER-ROLLING-UPGRADE")
@pytest.mark.parametrize("newer_asks", [True, False])
def test_a_newer_and_an_older_node_carry_each_others_calls(newer_asks: bool) -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        newer, older = (one, two) if newer_asks else (two, one)
        as_version(newer, Versions(1, 2))
        as_version(older, Versions(1, 1))
        as_version(three, Versions(3, 3))
        cluster.give(two)
        cluster.tell(two)
        assert await one.router.call(ACTOR, Add(5), principal="p") == Total(5)
        assert await one.router.query(ACTOR, Show()) == Total(5)
        with pytest.raises(NetworkError, match="versions 1 to"):
            await three.lines.ask(two.address, ActorQuery(str(ACTOR), b""), timeout_ms=1_000)
        assert two.telemetry.counts["kelpie.rpc.refused"] == 1

    simulate(work)


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
def test_a_node_learns_that_it_is_refused_before_it_asks_for_anything() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, three = cluster.nodes
        await one.lines.introduce(two.address)
        assert not one.lines.is_open(two.address)
        three.lines._identity = Identity(cluster="c1", node="n3", secret=b"another one, as long")
        with pytest.raises(GreetingError, match="secret"):
            await three.lines.introduce(two.address)
        with pytest.raises(NetworkError):
            await one.lines.introduce("nobody:1")

    simulate(work)


def test_a_silent_node_is_noticed_by_both_sides_and_an_idle_one_is_kept() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        await one.router.query(ACTOR, Show())
        await pass_time(120)
        assert one.lines.is_open(two.address)
        assert list(two.listener.nodes) == ["n1"]
        cluster.links.partition(["n1"], ["n2"])
        await pass_time(SILENT_S + 1)
        assert not one.lines.is_open(two.address)
        assert not two.listener.nodes
        reasons = {fields.get("reason") for _, _, fields in two.telemetry.logs}
        assert reasons == {"silent"}

    simulate(work)


def test_a_stranger_that_never_finishes_its_greeting_is_refused() -> None:
    class Mute:
        def __init__(self, link: FrameLink) -> None:
            self.losses = 0

        def frame(self, data: bytes) -> None: ...

        def pressed(self, *, is_behind: bool) -> None: ...

        def lost(self, reason: str) -> None:
            self.losses += 1

    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        mutes: list[Mute] = []

        def accept(link: FrameLink) -> Mute:
            mutes.append(Mute(link))
            return mutes[0]

        await one.lines._frames.connect(two.address, accept, timeout_ms=1_000)
        await pass_time(limits.GREETING_TIMEOUT_MS / 1_000 + 1)
        assert mutes[0].losses == 1
        assert two.telemetry.counts["kelpie.rpc.refused"] == 1

    simulate(work)


def test_requests_of_different_deadlines_end_each_at_its_own() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        await one.router.query(ACTOR, Show())
        two.local.ledger.owner = "n2"
        loop, ended = asyncio.get_running_loop(), {}
        body = ActorCall(actor=str(ACTOR), message=encode(Add(1)), principal="p", key="k")
        began = loop.time()
        cluster.links.cut("n2", "n1")

        async def ask(timeout_ms: int) -> None:
            with pytest.raises(DeadlineError):
                await one.lines.ask(two.address, body, timeout_ms=timeout_ms)
            ended[timeout_ms] = round((loop.time() - began) * 1_000)

        async with asyncio.TaskGroup() as asking:
            for timeout_ms in (900, 100, 500, 300):
                asking.create_task(ask(timeout_ms))
        assert ended == {each: each for each in (100, 300, 500, 900)}
        cluster.links.heal()
        await pass_time(1)
        assert await one.router.query(ACTOR, Show()) == Total(1)

    simulate(work)


def test_a_node_that_connects_again_replaces_its_earlier_line() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        cluster.give(two)
        cluster.tell(two)
        again = ClusterNode("n1", cluster)
        again.ownership.point({ACTOR.shard: two.address})
        await one.router.query(ACTOR, Show())
        assert await again.router.query(ACTOR, Show()) == Total(0)
        await pass_time(1)
        assert not one.lines.is_open(two.address)
        assert two.listener.nodes == ("n1",)
        again.lines.close()
        await again.supervisor.close()

    simulate(work)


def test_a_node_that_stays_away_is_tried_with_growing_pauses() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        await two.listener.close()
        body = ActorQuery(str(ACTOR), b"")
        for _ in range(600):
            with pytest.raises(NetworkError) as caught:
                await one.lines.ask(two.address, body, timeout_ms=1_000)
            assert not caught.value.sent
            await pass_time(TURN_S)
        tries = one.telemetry.counts["kelpie.rpc.connect_failures"]
        assert 8 <= tries <= 25

    simulate(work)


def test_a_closed_node_asks_nobody() -> None:
    async def work(cluster: Cluster) -> None:
        one, two, _ = cluster.nodes
        one.lines.close()
        with pytest.raises(NetworkError, match="shutting down"):
            await one.lines.ask(two.address, ActorQuery(str(ACTOR), b""), timeout_ms=1_000)
        assert not one.lines.is_open(two.address)

    simulate(work)
