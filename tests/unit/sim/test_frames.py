"""Simulated connections: ordered and whole while they last, and lost in every way that TCP is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kelpie.core.errors import ConfigError
from kelpie.core.limits import FRAME_QUEUE_BYTES_HIGH, FRAME_STRANGER_BYTES_MAX
from kelpie.ports.frames import FrameLink
from kelpie.ports.network import NetworkError
from kelpie.sim.clock import MachineClock
from kelpie.sim.faults.plan import FaultPlan, FaultRule, Faults, NoFaults
from kelpie.sim.frames import STALL_S, SimulatedFrames, SimulatedWires
from kelpie.sim.incarnation import Incarnation
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.network import Links

ADDRESS = "n2:7000"


def simulate(work: Callable[[], Awaitable[None]]) -> SimulatedLoop:
    loop = SimulatedLoop()

    async def main() -> None:
        await work()

    try:
        loop.run_until_complete(main())
    finally:
        loop.abandon()
    return loop


def faults(*names: str, rate: float = 1.0, count_max: int = 1000) -> FaultPlan:
    rules = [FaultRule(name=name, rate=rate, count_max=count_max) for name in names]
    return FaultPlan(rules, seed=1, now_ns=lambda: 0)


class Ear:
    """Keeps what one side is told."""

    def __init__(self, link: FrameLink) -> None:
        self.link = link
        self.frames: list[bytes] = []
        self.presses: list[bool] = []
        self.losses: list[str] = []

    def frame(self, data: bytes) -> None:
        assert not self.losses, "nothing arrives after the loss"
        self.frames.append(data)

    def pressed(self, *, is_behind: bool) -> None:
        self.presses.append(is_behind)

    def lost(self, reason: str) -> None:
        self.losses.append(reason)


class Pair:
    """Two hosts and one connection between them."""

    def __init__(self, plan: Faults | None = None, *, proves: bool = False) -> None:
        plan = plan or NoFaults()
        self.links = Links(plan)
        wires = SimulatedWires(self.links, plan)
        self.one = SimulatedFrames(wires, host="n1", proves=proves)
        self.two = SimulatedFrames(wires, host="n2", proves=proves)
        self.ears: list[Ear] = []

    def accept(self, link: FrameLink) -> Ear:
        self.ears.append(Ear(link))
        return self.ears[-1]

    async def open(self) -> tuple[Ear, Ear]:
        await self.two.listen(ADDRESS, self.accept)
        await self.one.connect(ADDRESS, self.accept, timeout_ms=2_000)
        theirs, mine = self.ears
        return mine, theirs


def test_frames_arrive_whole_once_and_in_order_whatever_befalls_packets() -> None:
    async def work() -> None:
        pair = Pair(faults("network.delay", "network.message_reorder", rate=0.5))
        mine, theirs = await pair.open()
        sent = [b"%d" % number for number in range(200)]
        for frame in sent:
            mine.link.send(frame)
            await asyncio.sleep(0.001)
        theirs.link.send(b"back")
        await asyncio.sleep(30)
        assert theirs.frames == sent
        assert mine.frames == [b"back"]
        assert mine.link.queued_bytes == 0
        assert (mine.link.peer, theirs.link.peer) == ("n2", "n1")

    assert simulate(work).time() > 30


def test_a_cut_stalls_and_a_mended_link_goes_on_in_order() -> None:
    async def work() -> None:
        pair = Pair()
        mine, theirs = await pair.open()
        mine.link.send(b"before")
        await asyncio.sleep(0.1)
        pair.links.cut("n1", "n2")
        mine.link.send(b"one")
        await asyncio.sleep(STALL_S / 2)
        mine.link.send(b"two")
        assert theirs.frames == [b"before"]
        pair.links.heal()
        mine.link.send(b"three")
        await asyncio.sleep(1)
        assert theirs.frames == [b"before", b"one", b"two", b"three"]
        assert not mine.losses

    assert simulate(work).time() < STALL_S


def test_a_partition_that_outlasts_the_stall_loses_the_sender_alone() -> None:
    async def work() -> None:
        pair = Pair()
        mine, theirs = await pair.open()
        pair.links.partition(["n1"], ["n2"])
        mine.link.send(b"never")
        await asyncio.sleep(STALL_S + 1)
        assert mine.losses == ["the simulated connection timed out"]
        assert not theirs.losses
        pair.links.heal()
        theirs.link.send(b"hello?")
        await asyncio.sleep(1)
        assert theirs.losses == ["reset by the other side"]
        assert theirs.frames == mine.frames == []

    assert simulate(work).steps


def test_acknowledgements_need_the_way_back() -> None:
    async def work() -> None:
        pair = Pair()
        mine, theirs = await pair.open()
        pair.links.cut("n2", "n1")
        mine.link.send(b"unheard")
        await asyncio.sleep(STALL_S - 1)
        assert theirs.frames == [b"unheard"]
        assert not mine.losses
        await asyncio.sleep(2)
        assert mine.losses
        await asyncio.sleep(1)
        assert len(theirs.losses) == 1

    assert simulate(work).steps


def test_a_lost_packet_that_is_never_repaired_stalls_and_then_loses_both() -> None:
    async def work() -> None:
        pair = Pair(faults("network.packet_loss", count_max=1))
        mine, theirs = await pair.open()
        mine.link.send(b"lost")
        mine.link.send(b"behind it")
        await asyncio.sleep(STALL_S - 1)
        assert not mine.losses
        await asyncio.sleep(2)
        assert theirs.frames == []
        assert len(mine.losses) == len(theirs.losses) == 1

    assert simulate(work).steps


def test_a_reset_ends_both_sides_once() -> None:
    async def work() -> None:
        pair = Pair(faults("network.reset", count_max=1))
        mine, theirs = await pair.open()
        mine.link.send(b"torn")
        mine.link.close()
        await asyncio.sleep(1)
        assert len(mine.losses) == len(theirs.losses) == 1
        mine.link.send(b"after")
        await asyncio.sleep(1)
        assert b"after" not in theirs.frames

    assert simulate(work).steps


def test_what_was_sent_before_a_close_arrives_before_it() -> None:
    async def work() -> None:
        pair = Pair()
        mine, theirs = await pair.open()
        mine.link.send(b"last words")
        mine.link.close()
        await asyncio.sleep(1)
        assert theirs.frames == [b"last words"]
        assert theirs.losses == ["closed by the other side"]

    assert simulate(work).steps


def test_a_side_that_holds_presses_nobody_until_much_is_queued() -> None:
    async def work() -> None:
        pair = Pair()
        mine, theirs = await pair.open()
        theirs.link.admit()
        theirs.link.hold(is_held=True)
        mine.link.send(bytes(10))
        await asyncio.sleep(1)
        assert theirs.frames == []
        theirs.link.hold(is_held=False)
        await asyncio.sleep(1)
        assert len(theirs.frames) == 1
        mine.link.send(bytes(FRAME_QUEUE_BYTES_HIGH + 1))
        await asyncio.sleep(1)
        assert mine.presses == [True, False]

    assert simulate(work).steps


def test_a_stranger_that_sends_much_is_lost() -> None:
    async def work() -> None:
        pair = Pair(proves=True)
        mine, theirs = await pair.open()
        mine.link.send(bytes(FRAME_STRANGER_BYTES_MAX + 1))
        await asyncio.sleep(1)
        assert theirs.losses == ["a frame of a stranger is too large"]
        assert mine.losses
        assert (mine.link.proven, theirs.link.proven) == ("n2", "n1")

    assert simulate(work).steps


def test_connections_are_refused_where_nobody_listens_or_nothing_passes() -> None:
    async def work() -> None:
        pair = Pair(faults("network.refused", count_max=1))
        listener = await pair.two.listen(ADDRESS, pair.accept)
        with pytest.raises(ConfigError, match="taken"):
            await pair.two.listen(ADDRESS, pair.accept)
        with pytest.raises(NetworkError, match="refused"):
            await pair.one.connect(ADDRESS, pair.accept, timeout_ms=100)
        pair.links.partition(["n1"], ["n2"])
        with pytest.raises(NetworkError, match="no connection"):
            await pair.one.connect(ADDRESS, pair.accept, timeout_ms=100)
        pair.links.heal()
        await pair.one.connect(ADDRESS, pair.accept, timeout_ms=100)
        await listener.close()
        await asyncio.sleep(1)
        assert all(ear.losses for ear in pair.ears)
        with pytest.raises(NetworkError, match="nobody listens"):
            await pair.one.connect(ADDRESS, pair.accept, timeout_ms=100)

    assert simulate(work).steps


def test_a_program_that_died_is_a_reset_for_its_peer_and_may_listen_again() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        pair = Pair()
        machine = MachineClock(lambda: loop.now_ns)
        program = Incarnation("n2", 1, machine)
        listening = loop.create_task(
            pair.two.listen(ADDRESS, pair.accept), context=program.context()
        )
        await listening
        await pair.one.connect(ADDRESS, pair.accept, timeout_ms=2_000)
        theirs, mine = pair.ears
        theirs.link.send(b"last words")
        await asyncio.sleep(0)
        mine.link.send(b"never read")
        program.dead = True
        await asyncio.sleep(1)
        assert mine.frames == [b"last words"]
        assert theirs.frames == []
        assert mine.losses == ["reset by the other side"]
        assert not theirs.losses
        with pytest.raises(NetworkError, match="nobody listens"):
            await pair.one.connect(ADDRESS, pair.accept, timeout_ms=2_000)
        await pair.two.listen(ADDRESS, pair.accept)
        await pair.one.connect(ADDRESS, pair.accept, timeout_ms=2_000)
        pair.ears[-1].link.send(b"again")
        await asyncio.sleep(1)
        assert pair.ears[-2].frames == [b"again"]

    assert simulate(work).steps
