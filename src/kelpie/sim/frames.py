"""Connections between simulated nodes: ordered and whole while they last, over the world's links.

A connection hides the loss, the doubling and the overtaking of packets, as TCP does: what is lost
on its way shows as a stall, and when the stall outlasts `STALL_S` the sender gives up. A cut link
stalls, a clogged one holds, and both go on if they are mended in time. Where only the way back is
cut, frames arrive and the sender does not know it. A reset ends both sides, the
other one when it hears of it. Of a program that died its peers hear when they next send.

Invariants: a side is told at most once that it is lost; frames arrive whole, once and in order, in
the life of the program that took the connection; nothing arrives after the loss.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Final

from kelpie.core.errors import ConfigError
from kelpie.core.limits import FRAME_BYTES_MAX, FRAME_QUEUE_BYTES_HIGH, FRAME_STRANGER_BYTES_MAX
from kelpie.ports.frames import FrameLink, FrameListener, FrameReceiver
from kelpie.ports.network import NetworkError
from kelpie.sim.faults.plan import Faults
from kelpie.sim.incarnation import INCARNATION, Incarnation
from kelpie.sim.network import CONNECT_S, LATENCY_S, Link, Links

STALL_S: Final = 15.0  # unacknowledged for so long, a connection is given up
LOOK_S: Final = 0.05  # how often a sender tries a link that is stopped

Accept = Callable[[FrameLink], FrameReceiver]


class _Listening:
    """One program that takes connections at an address."""

    def __init__(self, accept: Accept, context: Context, program: Incarnation | None) -> None:
        self.accept = accept
        self.context = context
        self.program = program
        self.sides: list[SimulatedLink] = []

    @property
    def is_alive(self) -> bool:
        """Whether the program that listens has not died."""
        return self.program is None or not self.program.dead


class SimulatedWires:
    """What all hosts of a world share: the links, and who listens where."""

    def __init__(self, links: Links, faults: Faults) -> None:
        self.links = links
        self.faults = faults
        self.listening: dict[str, _Listening] = {}


class SimulatedLink:
    """One side of a connection; implements `FrameLink`.

    What is on its way belongs to the world, whatever becomes of the programs at both ends; what a
    program is told, it is told in a step of its own.
    """

    def __init__(self, wires: SimulatedWires, way: Link, proven: str) -> None:
        self._wires = wires
        self._way = way
        self._proven = proven
        self._program = INCARNATION.get()
        self._context = copy_context()
        self._world = copy_context()
        self._world.run(INCARNATION.set, None)
        self._receiver: FrameReceiver | None = None
        self._queue: list[bytes] = []
        self._flight: deque[list[bytes]] = deque()
        self._queued_bytes = 0
        self._inbox: deque[bytes] = deque()
        self._is_leaving = False
        self._is_held = False
        self._is_behind = False
        self._size_max = FRAME_STRANGER_BYTES_MAX
        self._stalled_s = -1.0
        self._unheard_s = -1.0
        self._is_hopeless = False
        self.is_lost = False
        self.other: SimulatedLink | None = None

    def attach(self, receiver: FrameReceiver) -> None:
        """Hand frames to ``receiver`` from now on."""
        assert self._receiver is None, "attached once"
        self._receiver = receiver
        assert self.other is not None, "a connection has two sides"

    @property
    def is_dead(self) -> bool:
        """Whether the program at this side has died."""
        return self._program is not None and self._program.dead

    # --- the owner's side -----------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The other host."""
        return self._proven or self._way.target

    @property
    def proven(self) -> str:
        """The name that the other side's certificate would prove; empty without TLS."""
        return self._proven

    @property
    def queued_bytes(self) -> int:
        """What has not arrived."""
        return self._queued_bytes

    def send(self, frame: bytes) -> None:
        """Queue one frame; frames of one tick travel together."""
        assert 0 < len(frame) <= FRAME_BYTES_MAX, "its maker bounds a frame"
        if self.is_lost:
            return
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._queued_bytes > FRAME_QUEUE_BYTES_HIGH and not self._is_behind:
            self._is_behind = True
            self._tell(self._press)
        if not self._is_leaving:
            self._is_leaving = True
            asyncio.get_running_loop().call_soon(self._leave, context=self._world)
        assert self._queued_bytes >= len(frame), "what was sent is counted"

    def admit(self) -> None:
        """Take frames of the full size from now on."""
        assert self._receiver is not None, "a side that was made has a receiver"
        self._size_max = FRAME_BYTES_MAX
        assert self._size_max > FRAME_STRANGER_BYTES_MAX

    def hold(self, *, is_held: bool) -> None:
        """Stop reading, or go on."""
        assert self._receiver is not None or self.is_lost, "a side that was made has a receiver"
        self._is_held = is_held
        if not is_held and self._inbox:
            self._tell(self._read)
        assert self._is_held == is_held

    def close(self) -> None:
        """End the connection; the other side hears of it over the link, after what was sent."""
        if not self.is_lost and self._queue and self.other is not None:
            self._flight.append(self._queue)
            self._queue = []
        self.lose("closed here", is_told=True)
        assert self.is_lost
        assert not self._queue

    # --- on the way: steps of the world ---------------------------------------------------------

    def _leave(self) -> None:
        """Put what is queued on its way."""
        self._is_leaving = False
        frames, self._queue = self._queue, []
        other, faults = self.other, self._wires.faults
        if self.is_lost or self.is_dead or not frames or other is None:
            return
        if faults.fires("network.reset"):
            self.lose("the simulated connection was reset", is_told=True)
        else:
            self._flight.append(frames)
            self._is_hopeless = self._is_hopeless or faults.fires("network.packet_loss")
            self._arrive_in(self._wires.links.latency_s())

    def _arrive_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, self._arrive, context=self._world)

    def _arrive(self) -> None:
        """Hand over the oldest that is on its way, whichever step this is, or look again later."""
        other, links = self.other, self._wires.links
        assert other is not None, "frames have somewhere to arrive"
        if not self._flight:
            return
        if self._is_hopeless or links.is_stopped(*self._way):
            self._wait_for_weather()
            return
        if other.is_dead or other.is_lost:
            # Nobody has this connection there: the answer is a reset, which takes its way too.
            self._flight.clear()
            loop = asyncio.get_running_loop()
            loop.call_later(LATENCY_S, self._be_reset, context=self._world)
            return
        self._stalled_s = -1.0
        if links.is_cut(*self._way.back()) and self._unheard_s < 0:
            self._unheard_s = asyncio.get_running_loop().time()
            self._wait_for_acknowledgement()
        frames = self._flight.popleft()
        self._queued_bytes -= sum(map(len, frames))
        if self._is_behind and self._queued_bytes <= FRAME_QUEUE_BYTES_HIGH // 4:
            self._is_behind = False
            self._tell(self._press)
        other.take(frames)

    def _be_reset(self) -> None:
        if not self._wires.links.is_stopped(*self._way.back()):
            self.lose("reset by the other side")

    def _wait_for_weather(self) -> None:
        """Send again what did not arrive, until the sender gives the connection up."""
        now_s = asyncio.get_running_loop().time()
        if self._stalled_s < 0:
            self._stalled_s = now_s
        if now_s - self._stalled_s >= STALL_S:
            self._flight.clear()
            self.lose("the simulated connection timed out", is_told=True)
        else:
            self._arrive_in(LOOK_S)

    def _wait_for_acknowledgement(self) -> None:
        """Give the connection up if the other side is not heard in time: it has what was sent."""
        loop = asyncio.get_running_loop()
        if not self._wires.links.is_cut(*self._way.back()):
            self._unheard_s = -1.0
        elif loop.time() - self._unheard_s >= STALL_S:
            self.lose("the simulated connection timed out", is_told=True)
        elif not self.is_lost:
            loop.call_later(LOOK_S, self._wait_for_acknowledgement, context=self._world)

    # --- what a program is told: steps of its own -----------------------------------------------

    def take(self, frames: list[bytes]) -> None:
        """Keep frames that arrived until the program reads them."""
        assert frames, "what arrives is something"
        self._inbox.extend(frames)
        self._tell(self._read)
        assert self._inbox

    def _tell(self, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(what, context=self._context)

    def _read(self) -> None:
        while self._inbox and not self._is_held and not self.is_lost:
            frame = self._inbox.popleft()
            if len(frame) > self._size_max:
                self.lose("a frame of a stranger is too large", is_told=True)
                return
            assert self._receiver is not None, "a side that was made has a receiver"
            self._receiver.frame(frame)

    def _press(self) -> None:
        if self._receiver is not None and not self.is_lost:
            self._receiver.pressed(is_behind=self._is_behind)

    def lose(self, reason: str, *, is_told: bool = False) -> None:
        """End this side, and let the other one hear of it if ``is_told`` and the link lets it."""
        assert reason, "a loss has a reason"
        if self.is_lost:
            return
        self.is_lost = True
        self._queue.clear()
        self._inbox.clear()
        self._tell(lambda: self._tell_lost(reason))
        if is_told and self.other is not None:
            loop = asyncio.get_running_loop()
            loop.call_soon(self._announce_end, context=self._world)
        assert not self._queue

    def _announce_end(self) -> None:
        """Hand over what was on its way, then the end; if the link is stopped, neither arrives."""
        other, links = self.other, self._wires.links
        assert other is not None, "there is another side"
        if other.is_lost or links.is_stopped(*self._way):
            return
        while self._flight and not self._is_hopeless:
            other.take(self._flight.popleft())
        asyncio.get_running_loop().call_later(
            LATENCY_S, lambda: other.lose("closed by the other side"), context=self._world
        )

    def _tell_lost(self, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(reason)


class SimulatedListener:
    """A place where connections arrive; implements `FrameListener`."""

    def __init__(self, wires: SimulatedWires, address: str) -> None:
        self._wires = wires
        self._address = address

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._address

    async def close(self) -> None:
        """Take no further connection, and end those that it took."""
        listening = self._wires.listening.pop(self._address, None)
        for side in listening.sides if listening is not None else ():
            side.close()
        assert self._address not in self._wires.listening


class SimulatedFrames:
    """One host's connections to the others; implements `Frames`.

    Args:
        wires: Shared by all hosts of a world.
        host: Whose they are; its addresses read ``host:port``.
        proves: Whether both sides show certificates with their hosts' names.
    """

    def __init__(self, wires: SimulatedWires, *, host: str, proves: bool = False) -> None:
        self._wires = wires
        self._host = host
        self._proves = proves
        wires.links.add_host(host)

    async def connect(self, address: str, accept: Accept, *, timeout_ms: int) -> FrameLink:
        """Connect to ``address``.

        Raises:
            NetworkError: Nobody listens there, or the link is stopped for too long.
        """
        await asyncio.sleep(CONNECT_S)
        target = address.rpartition(":")[0]
        there = Link(self._host, target)
        if self._wires.faults.fires("network.refused"):
            raise NetworkError(f"{address} refused the connection", sent=False)
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                await self._wires.links.pass_through(*there)
                await self._wires.links.pass_through(*there.back())
        except TimeoutError:
            raise NetworkError(f"no connection to {address}", sent=False) from None
        listening = self._wires.listening.get(address)
        if listening is None or not listening.is_alive:
            raise NetworkError(f"nobody listens at {address}", sent=False)
        mine = SimulatedLink(self._wires, there, target if self._proves else "")
        listening.context.copy().run(self._take, listening, mine, there.back())
        mine.attach(accept(mine))
        return mine

    def _take(self, listening: _Listening, caller: SimulatedLink, way: Link) -> None:
        """Make the other side of a connection, in the life of the program that listens."""
        theirs = SimulatedLink(self._wires, way, self._host if self._proves else "")
        caller.other, theirs.other = theirs, caller
        listening.sides = [side for side in listening.sides if not side.is_lost]
        listening.sides.append(theirs)
        theirs.attach(listening.accept(theirs))

    async def listen(self, address: str, accept: Accept) -> FrameListener:
        """Take connections at ``address``, which names this host.

        Raises:
            ConfigError: A living program listens there.
        """
        host, _, port = address.rpartition(":")
        assert host == self._host, f"{address} is none of {self._host}"
        assert int(port) > 0, "a simulated listener has a port"
        before = self._wires.listening.get(address)
        if before is not None and before.is_alive:
            raise ConfigError(f"nodes cannot be listened for at {address}: it is taken")
        listening = _Listening(accept, copy_context(), INCARNATION.get())
        self._wires.listening[address] = listening
        return SimulatedListener(self._wires, address)
