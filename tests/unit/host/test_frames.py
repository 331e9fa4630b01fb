"""One TCP connection's frames, on a transport and a clock that the test owns."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core import limits
from kelpie.host.frames import TcpLink
from kelpie.ports.frames import FrameLink
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.telemetry import RecordedTelemetry


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.unsent = 0
        self.ended = ""
        self.reading = True

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == limits.FRAME_QUEUE_BYTES_HIGH

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.ended = "abort"

    def close(self) -> None:
        self.ended = self.ended or "close"

    def is_closing(self) -> bool:
        return bool(self.ended)

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Ear:
    """Keeps what the link's owner is told."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.presses: list[bool] = []
        self.losses: list[str] = []

    def frame(self, data: bytes) -> None:
        assert not self.losses
        self.frames.append(data)

    def pressed(self, *, is_behind: bool) -> None:
        self.presses.append(is_behind)

    def lost(self, reason: str) -> None:
        self.losses.append(reason)


class Side:
    """A link, what is on its wire, and what its owner was told."""

    def __init__(self) -> None:
        self.telemetry, self.ear, self.wire = RecordedTelemetry(), Ear(), Wire()
        self.link = TcpLink(self.accept, self.telemetry)
        self.link.connection_made(self.wire)

    def accept(self, link: FrameLink) -> Ear:
        return self.ear

    @property
    def refusals(self) -> list[object]:
        return [fields["reason"] for _, event, fields in self.telemetry.logs if "refused" in event]


def simulate(work: Callable[[Side], Awaitable[None]]) -> None:
    loop = SimulatedLoop()

    async def main() -> None:
        await work(Side())

    try:
        loop.run_until_complete(main())
    finally:
        loop.abandon()


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


@pytest.mark.requirement("K-04")
@given(
    frames=st.lists(st.binary(min_size=1, max_size=60), max_size=12),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=60),
)
def test_frames_are_whole_however_their_bytes_arrive(frames: list[bytes], cuts: list[int]) -> None:
    async def work(side: Side) -> None:
        rest, index = framed(*frames), 0
        while rest:
            size = cuts[index % len(cuts)]
            side.link.data_received(rest[:size])
            rest, index = rest[size:], index + 1
        assert side.ear.frames == frames
        side.link.connection_lost(None)
        assert len(side.ear.losses) == 1

    simulate(work)


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED", "CLUSTER-FRAMES-BOUNDED")
@given(data=st.lists(st.binary(max_size=80), max_size=20))
def test_arbitrary_bytes_end_the_connection_or_are_small_frames(data: list[bytes]) -> None:
    async def work(side: Side) -> None:
        for piece in data:
            side.link.data_received(piece)
            if side.wire.ended:
                break
        assert all(0 < len(frame) <= limits.FRAME_STRANGER_BYTES_MAX for frame in side.ear.frames)
        assert side.refusals == (["frame_size"] if side.wire.ended else [])

    simulate(work)


@pytest.mark.requirement("CLUSTER-FRAMES-BOUNDED")
def test_a_stranger_sends_a_greeting_and_a_node_frames_of_the_full_size() -> None:
    async def work(side: Side) -> None:
        large = bytes(limits.FRAME_STRANGER_BYTES_MAX + 1)
        assert side.link.is_stranger
        side.link.admit()
        side.link.data_received(framed(large))
        assert side.ear.frames == [large]
        side.link.data_received(struct.pack(">I", limits.FRAME_BYTES_MAX + 1))
        assert side.wire.ended == "abort"
        side.link.data_received(framed(b"more"))
        assert side.ear.frames == [large]

    simulate(work)


def test_frames_of_one_tick_leave_in_one_write() -> None:
    async def work(side: Side) -> None:
        for frame in (b"one", b"two"):
            side.link.send(frame)
        assert side.wire.written == []
        assert side.link.queued_bytes == len(framed(b"one", b"two"))
        await asyncio.sleep(0)
        assert side.wire.written == [framed(b"one", b"two")]
        side.link.send(b"last")
        side.link.close()
        assert side.wire.written[-1] == framed(b"last")
        side.link.send(b"too late")
        await asyncio.sleep(0)
        assert len(side.wire.written) == 2

    simulate(work)


@pytest.mark.requirement("CLUSTER-FRAMES-BOUNDED")
def test_a_frame_that_trickles_ends_its_connection_and_a_held_one_does_not() -> None:
    wait_s = limits.FRAME_RECEIVE_TIMEOUT_MS / 1_000

    async def trickles(side: Side) -> None:
        for byte in framed(bytes(1_000)):
            side.link.data_received(bytes([byte]))
            await asyncio.sleep(0.1)
            if side.wire.ended:
                break
        assert side.refusals == ["frame_late"]
        assert side.ear.frames == []

    async def goes_on(side: Side) -> None:
        for _ in range(30):
            whole = framed(b"frame", b"next")
            side.link.data_received(whole[:-2])
            await asyncio.sleep(wait_s / 2)
            side.link.data_received(whole[-2:])
        side.link.hold(is_held=True)
        side.link.data_received(framed(b"half")[:3])
        await asyncio.sleep(5 * wait_s)
        assert not side.wire.ended
        side.link.hold(is_held=False)
        await asyncio.sleep(5 * wait_s)
        assert side.refusals == ["frame_late"]

    simulate(trickles)
    simulate(goes_on)


@pytest.mark.requirement("CLUSTER-FRAMES-BOUNDED")
def test_a_peer_that_takes_nothing_is_told_of_and_then_given_up() -> None:
    async def work(side: Side) -> None:
        side.link.pause_writing()
        side.link.resume_writing()
        side.link.pause_writing()
        assert side.ear.presses == [True, False, True]
        side.wire.unsent = limits.FRAME_QUEUE_BYTES_MAX
        side.link.send(b"one more")
        assert side.wire.ended == "abort"
        assert side.refusals == ["queue_full"]
        side.link.connection_lost(None)
        assert side.ear.losses == ["too much waits for the other side"]
        side.link.resume_writing()
        assert side.ear.presses == [True, False, True]

    simulate(work)


@pytest.mark.requirement("CLUSTER-FRAMES-BOUNDED")
def test_a_slow_peer_is_kept_and_one_that_takes_nothing_is_not() -> None:
    wait_s = limits.FRAME_STUCK_TIMEOUT_MS / 1_000

    async def work(side: Side) -> None:
        side.link.admit()
        side.link.send(bytes(limits.FRAME_QUEUE_BYTES_HIGH * 2))
        await asyncio.sleep(0)
        side.wire.unsent = len(side.wire.written[0])
        side.link.pause_writing()
        for _ in range(20):
            side.wire.unsent -= 1
            await asyncio.sleep(wait_s)
        assert not side.wire.ended
        await asyncio.sleep(2 * wait_s)
        assert side.refusals == ["stuck"]

    simulate(work)
