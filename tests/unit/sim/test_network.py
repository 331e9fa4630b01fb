"""Links and exchanges: what arrives, what does not, and what callers learn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kelpie.ports.network import HttpRequest, NetworkError
from kelpie.sim.faults.plan import FaultPlan, FaultRule, Faults, NoFaults
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.network import Answer, Links, SimulatedNetwork

PIECES = (b"one ", b"two ", b"three")


def simulate(work: Callable[[], Awaitable[None]]) -> SimulatedLoop:
    loop = SimulatedLoop()

    async def main() -> None:
        await work()

    try:
        loop.run_until_complete(main())
    finally:
        loop.abandon()
    return loop


def faults(*names: str, rate: float = 1.0, count_max: int = 1000, seed: int = 1) -> FaultPlan:
    rules = [FaultRule(name=name, rate=rate, count_max=count_max) for name in names]
    return FaultPlan(rules, seed=seed, now_ns=lambda: 0)


def request(url: str = "http://model.sim/v1", timeout_ms: int = 5_000) -> HttpRequest:
    return HttpRequest(
        method="POST", url=url, connect_timeout_ms=timeout_ms, idle_timeout_ms=timeout_ms
    )


class Peer:
    """Counts its requests and answers all alike."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, _: HttpRequest) -> Answer:
        self.count += 1
        return Answer(pieces=PIECES)


def network_with(plan: Faults) -> tuple[SimulatedNetwork, Peer]:
    network, peer = SimulatedNetwork(faults=plan, host="n1"), Peer()
    network.add_peer("http://model.sim/", peer)
    return network, peer


async def fetch(network: SimulatedNetwork, **options: Any) -> bytes:
    async with network.exchange(request(**options)) as response:
        return b"".join([chunk async for chunk in response.chunks()])


async def refuses(network: SimulatedNetwork, *, sent: bool, match: str, **options: Any) -> None:
    with pytest.raises(NetworkError, match=match) as caught:
        await fetch(network, **options)
    assert caught.value.sent is sent


def test_a_request_gets_its_whole_answer_and_strangers_are_not_reached() -> None:
    async def work() -> None:
        network, peer = network_with(NoFaults())
        assert await fetch(network) == b"".join(PIECES)
        assert peer.count == 1
        await refuses(network, sent=False, match="nobody listens", url="http://else.sim/")
        assert network.of("n2").links is network.links
        assert network.links.hosts == ("model.sim", "n1", "n2")

    assert simulate(work).time() < 1


@pytest.mark.parametrize(
    ("name", "sent", "match"),
    [
        ("network.refused", False, "refused"),
        ("network.packet_loss", True, "was lost"),
        ("network.reset", True, "was reset"),
    ],
)
def test_a_failed_exchange_says_whether_the_request_may_have_arrived(
    name: str, sent: bool, match: str
) -> None:
    async def work() -> None:
        network, peer = network_with(faults(name))
        await refuses(network, sent=sent, match=match)
        assert peer.count == (name == "network.reset")

    simulate(work)


def test_a_doubled_request_reaches_the_peer_twice_and_is_answered_once() -> None:
    async def work() -> None:
        network, peer = network_with(faults("network.duplicate", count_max=1))
        assert await fetch(network) == b"".join(PIECES)
        assert peer.count == 2

    simulate(work)


@pytest.mark.parametrize("name", ["network.slow_trickle", "network.delay"])
def test_a_slow_network_takes_time_and_loses_nothing(name: str) -> None:
    async def work() -> None:
        network, _ = network_with(faults(name))
        assert await fetch(network, timeout_ms=60_000) == b"".join(PIECES)

    calm = simulate(fetch_calmly)
    assert simulate(work).time() > calm.time() * 3


async def fetch_calmly() -> None:
    network, _ = network_with(NoFaults())
    assert await fetch(network) == b"".join(PIECES)


def test_a_cut_before_the_connection_is_provably_before_sending() -> None:
    async def work() -> None:
        network, peer = network_with(NoFaults())
        network.links.cut("model.sim", "n1")
        await refuses(network, sent=False, match="no connection")
        assert peer.count == 0
        network.links.mend("model.sim", "n1")
        assert await fetch(network) == b"".join(PIECES)

    simulate(work)


def test_a_cut_in_the_middle_of_a_body_is_silence_until_the_timeout() -> None:
    async def work() -> None:
        network, _ = network_with(NoFaults())
        async with network.exchange(request()) as response:
            chunks = response.chunks()
            assert await anext(chunks) == PIECES[0]
            network.links.partition(["n1"], ["model.sim"])
            with pytest.raises(NetworkError, match="stalled") as caught:
                await anext(chunks)
            assert caught.value.sent

    assert simulate(work).time() > 5


def test_a_partition_that_heals_in_time_only_delays() -> None:
    async def work() -> None:
        network, _ = network_with(NoFaults())
        network.links.partition(["n1"], ["model.sim"])
        asyncio.get_running_loop().call_later(0.5, network.links.heal)
        assert await fetch(network) == b"".join(PIECES)

    assert simulate(work).time() > 0.5


async def post_many(links: Links, count: int, arrived: list[int]) -> None:
    for name in ("n1", "n2"):
        links.add_host(name)
    for number in range(count):
        links.post("n1", "n2", lambda number=number: arrived.append(number))  # type: ignore[misc]
        await asyncio.sleep(0.001)
    await asyncio.sleep(60)
    links.check_invariants()


@pytest.mark.parametrize(
    ("name", "least", "most", "ordered"),
    [
        ("", 100, 100, True),
        ("network.packet_loss", 20, 80, True),
        ("network.duplicate", 120, 180, True),
        ("network.delay", 100, 100, False),
        ("network.message_reorder", 100, 100, False),
    ],
)
def test_messages_are_lost_doubled_or_overtaken_as_the_fault_says(
    name: str, least: int, most: int, ordered: bool
) -> None:
    arrived: list[int] = []

    async def work() -> None:
        plan = faults(name, rate=0.5) if name else NoFaults()
        await post_many(Links(plan), 100, arrived)

    simulate(work)
    assert least <= len(arrived) <= most
    assert (arrived == sorted(arrived)) is ordered


def test_a_cut_link_loses_messages_and_a_clogged_one_keeps_them_in_order() -> None:
    async def work() -> None:
        links = Links(NoFaults())
        for name in ("n1", "n2"):
            links.add_host(name)
        arrived: list[int] = []
        links.clog("n2")
        for number in range(5):
            links.post("n1", "n2", lambda number=number: arrived.append(number))  # type: ignore[misc]
        await asyncio.sleep(1)
        assert arrived == []
        links.unclog("n2")
        assert arrived == [0, 1, 2, 3, 4]
        links.cut("n1", "n2")
        links.post("n1", "n2", lambda: arrived.append(9))
        links.post("n2", "n1", lambda: arrived.append(5))
        await asyncio.sleep(1)
        assert arrived == [0, 1, 2, 3, 4, 5]
        assert links.lost == 1

    simulate(work)


@pytest.mark.parametrize(
    "name", ["network.partition", "network.one_way_cut", "network.swizzle_clog"]
)
def test_weather_comes_and_goes_and_healing_ends_it(name: str) -> None:
    async def work() -> None:
        plan = faults(name, rate=0.3, count_max=5, seed=3)
        links = Links(plan)
        for host in ("n1", "n2", "n3"):
            links.add_host(host)
        disturbed = 0
        async with asyncio.TaskGroup() as group:
            storm = group.create_task(links.weather())
            for _ in range(300):
                await asyncio.sleep(0.25)
                links.check_invariants()
                disturbed += bool(links._cut or links._clogged)
            storm.cancel()
        assert plan.injected[name] == 5
        assert 5 < disturbed < 290
        links.heal()
        arrived: list[int] = []
        await post_many(links, 10, arrived)
        assert arrived == list(range(10))

    simulate(work)
