"""One connection between two nodes, from its greeting to its loss, on the event loop.

Owns the timers and the futures around a `Channel`. A line has a direction: the side that connected
asks. What is queued in one tick leaves in one frame.

Invariants: every request ends: by its answer, its error, its deadline or the line's loss; after its
loss a line says nothing; a line that hears nothing for `HEARTBEAT_TIMEOUT_MS` is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from kelpie.cluster.channel import Channel, ChannelError
from kelpie.cluster.handshake import (
    ConnectingSide,
    DialledSide,
    GreetingError,
    GreetingStep,
    Peer,
    make_refusal,
)
from kelpie.cluster.messages import (
    AnswerPacket,
    Asked,
    AskPacket,
    CancelPacket,
    ChangedHint,
    FailPacket,
    Hint,
    LookHint,
    Packet,
    WakeHint,
    WatchHint,
)
from kelpie.core import limits
from kelpie.core.errors import DeadlineError, KelpieError, OverloadedError
from kelpie.ports.frames import FrameLink
from kelpie.ports.network import NetworkError
from kelpie.ports.telemetry import Telemetry

BEAT_S: Final = limits.HEARTBEAT_INTERVAL_MS / 1_000
SILENT_BEATS_MAX: Final = limits.HEARTBEAT_TIMEOUT_MS // limits.HEARTBEAT_INTERVAL_MS
TIMER_SLACK_S: Final = 1e-6  # a timer may be early by a rounding, and would be set again for ever
_HINTS: Final = (WakeHint, WatchHint, ChangedHint, LookHint)


class LineOwner(Protocol):
    """Told what befalls a line."""

    def greeted(self, line: Line, peer: Peer) -> None:
        """Note that the other side is a node of the cluster."""
        ...

    def hinted(self, line: Line, hint: Hint) -> None:
        """Take a hint of the other side."""
        ...

    def ended(self, line: Line, reason: str) -> None:
        """Note that the line is gone; told once."""
        ...


class Answering(Protocol):
    """Carries out what other nodes ask for."""

    def asked(self, request: IncomingRequest) -> None:
        """Take a request; its `answer` or `fail` ends it, now or later."""
        ...


class Line:
    """What both directions share; implements `FrameReceiver`.

    Attributes:
        peer: The node at the other end, once it was greeted.
        refusal: Why one side refused the other; None while neither did.
    """

    def __init__(
        self,
        link: FrameLink,
        greeting: ConnectingSide | DialledSide,
        owner: LineOwner,
        telemetry: Telemetry,
    ) -> None:
        self._link = link
        self._greeting: ConnectingSide | DialledSide | None = greeting
        self._owner = owner
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(asks=isinstance(greeting, ConnectingSide))
        self._is_flushing = False
        self._is_behind = False
        self._frames: deque[bytes] = deque()
        self._frames_bytes = 0
        self._was_heard = False
        self._silent_beats = 0
        self._lost = ""
        self.peer: Peer | None = None
        self.refusal: GreetingError | None = None
        wait_s = limits.GREETING_TIMEOUT_MS / 1_000
        self._timer = self._loop.call_later(wait_s, self._give_up_greeting)

    @property
    def is_lost(self) -> bool:
        """Whether it is gone."""
        return bool(self._lost)

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return self._channel.in_flight

    def hint(self, hint: Hint) -> None:
        """Tell the other side something that may be lost; harmless when the line is gone."""
        if self.peer is not None and not self._lost:
            self._channel.hint(hint)
            self._flush_soon()

    def close(self) -> None:
        """End the line; what was asked over it fails."""
        self._end("closed here")

    # --- what the link says ---------------------------------------------------------------------

    def frame(self, data: bytes) -> None:
        """Take one frame: a step of the greeting, or packets."""
        if self._lost:
            return
        assert data, "a frame holds something"
        self._was_heard = True
        if self._greeting is not None:
            self._greet(self._greeting, data)
            return
        try:
            packets = self._channel.receive(data)
        except ChannelError as error:
            self._refuse(error.reason, error.message)
            return
        for packet in packets:
            if isinstance(packet, _HINTS):
                self._owner.hinted(self, packet)
            else:
                self.take(packet)
        if self._channel.outgoing_bytes:
            self._flush_soon()

    def take(self, packet: Packet) -> None:
        """Act on one packet that is no hint; what each direction does is its own."""
        raise AssertionError(f"{type(self).__name__} takes no {type(packet).__name__}")

    def pressed(self, *, is_behind: bool) -> None:
        """Keep frames here while the other side takes less than is sent."""
        self._is_behind = is_behind
        if not is_behind:
            self._flush_soon()
        assert self._is_behind == is_behind

    def lost(self, reason: str) -> None:
        """Note that the connection is gone."""
        self._end(reason)

    # --- greeting -------------------------------------------------------------------------------

    def _greet(self, greeting: ConnectingSide | DialledSide, data: bytes) -> None:
        try:
            step: GreetingStep = greeting.receive(data)
        except GreetingError as error:
            if isinstance(greeting, DialledSide) or error.reason != "refused":
                self._link.send(make_refusal(error))
            self.refusal = error
            self._refuse(error.reason, error.message)
            return
        for frame in step.frames:
            self._link.send(frame)
        if step.peer is not None:
            self._greeting = None
            self.peer = step.peer
            self._link.admit()
            self._timer.cancel()
            self._timer = self._loop.call_later(BEAT_S, self._beat)
            self._owner.greeted(self, step.peer)

    def _give_up_greeting(self) -> None:
        if self._greeting is not None:
            self._refuse("late", "the greeting was not finished in time")

    # --- life -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Count beats, not time: a process that was stopped has not heard what waits for it."""
        if self._lost:
            return
        self._silent_beats = 0 if self._was_heard else self._silent_beats + 1
        self._was_heard = False
        if self._silent_beats >= SILENT_BEATS_MAX:
            self._refuse("silent", "the other node says nothing")
            return
        self._timer = self._loop.call_later(BEAT_S, self._beat)
        self.beat()

    def beat(self) -> None:
        """Show the other side that this one is there."""

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand frames to the link as far as it keeps up; a large answer is no reason to end it."""
        self._is_flushing = False
        if self._lost:
            return
        for frame in self._channel.take():
            self._frames.append(frame)
            self._frames_bytes += len(frame)
        while self._frames and not self._is_behind:
            if self._link.queued_bytes > limits.FRAME_QUEUE_BYTES_HIGH:
                self._flush_soon()
                return
            frame = self._frames.popleft()
            self._frames_bytes -= len(frame)
            self._link.send(frame)
        if self._frames_bytes > limits.FRAME_QUEUE_BYTES_MAX:
            self._refuse("queue_full", "the other node takes less than it asks for")

    def _refuse(self, reason: str, text: str) -> None:
        """End the line because of what the other side did; nothing that it sent is repeated."""
        if self._lost:
            return
        peer = self.peer.node if self.peer is not None else self._link.peer
        self._telemetry.count("kelpie.rpc.refused", reason=reason)
        self._telemetry.log("warning", "rpc.refused", reason=reason, peer=peer, problem=text)
        self._end(text)

    def _end(self, reason: str) -> None:
        if self._lost:
            return
        self._lost = reason or "lost"
        self._frames.clear()
        self._frames_bytes = 0
        self._timer.cancel()
        self._link.close()
        self.fall(self._lost)
        self._owner.ended(self, self._lost)
        assert self.is_lost

    def fall(self, reason: str) -> None:
        """Fail whatever waits for this line."""

    def check_invariants(self) -> None:
        """Assert that the books agree."""
        self._channel.check_invariants()
        assert self._frames_bytes == sum(map(len, self._frames))
        assert self.peer is None or self._greeting is None, "a peer has been greeted"


# --- the side that asks -------------------------------------------------------------------------


class _Waiting(NamedTuple):
    future: asyncio.Future[bytes]
    due: float
    timeout_ms: int


class AskingLine(Line):
    """The line of the side that connected."""

    def __init__(
        self, link: FrameLink, greeting: ConnectingSide, owner: LineOwner, telemetry: Telemetry
    ) -> None:
        super().__init__(link, greeting, owner, telemetry)
        self._waiting: dict[int, _Waiting] = {}
        self._deadline: asyncio.TimerHandle | None = None
        link.send(greeting.begin())

    async def ask(self, body: Asked, *, timeout_ms: int, trace: str = "") -> bytes:
        """Return the answer to a request.

        A caller that leaves, or whose time is up, takes its request back.

        Raises:
            NetworkError: The line is gone; ``sent`` says whether the request may have arrived.
            OverloadedError: Too much waits for this node already.
            DeadlineError: ``timeout_ms`` passed; the outcome may still follow.
            KelpieError: What the other node refuses, as it said it.
        """
        assert timeout_ms > 0, "a deadline lies in the future"
        if self._lost or self.peer is None:
            raise NetworkError(self._lost or "not greeted", sent=False)
        queued_bytes = self._link.queued_bytes + self._frames_bytes + self._channel.outgoing_bytes
        if queued_bytes > limits.RPC_QUEUE_BYTES_MAX:
            text = f"{queued_bytes:,} bytes wait for {self.peer.node}; try again"
            raise OverloadedError(text, limit=limits.RPC_QUEUE_BYTES_MAX)
        id_ = self._channel.ask(body, timeout_ms=timeout_ms, trace=trace)
        future: asyncio.Future[bytes] = self._loop.create_future()
        due = self._loop.time() + timeout_ms / 1_000
        self._waiting[id_] = _Waiting(future, due, timeout_ms)
        if self._deadline is None or due < self._deadline.when():
            self._set_deadline(due)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)
        try:
            return await future
        finally:
            if self._waiting.pop(id_, None) is not None:
                self._channel.cancel(id_)
                self._flush_soon()

    def _set_deadline(self, due: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_at(due, self._end_late)

    def _end_late(self) -> None:
        """End what is due; the timer was set for the earliest that there was."""
        self._deadline = None
        now, earliest = self._loop.time() + TIMER_SLACK_S, 0.0
        for future, due, timeout_ms in self._waiting.values():
            if due <= now:
                if not future.done():
                    future.set_exception(_late(timeout_ms))
            elif not earliest or due < earliest:
                earliest = due
        if earliest:
            self._set_deadline(earliest)

    def take(self, packet: Packet) -> None:
        """Give an answer to whoever asked."""
        assert isinstance(packet, AnswerPacket | FailPacket), "the channel lets nothing else by"
        waiting = self._waiting.pop(packet.id, None)
        assert waiting is not None, "a request that is open is waited for"
        future = waiting.future
        if future.done():
            return
        if isinstance(packet, AnswerPacket):
            future.set_result(packet.value)
        else:
            future.set_exception(packet.error.restore())

    def beat(self) -> None:
        """Ping."""
        self._channel.ping()
        self._flush_soon()

    def fall(self, reason: str) -> None:
        """Fail every request: nobody knows what became of it."""
        assert self.is_lost, "only a lost line falls"
        waiting, self._waiting = self._waiting, {}
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        for future, _, _ in waiting.values():
            if not future.done():
                future.set_exception(NetworkError(f"the connection was lost: {reason}", sent=True))
        assert not self._waiting


def _late(timeout_ms: int) -> DeadlineError:
    text = f"the owner did not answer within {timeout_ms:,} ms; its outcome may still follow"
    return DeadlineError(text, timeout_ms=timeout_ms)


# --- the side that answers ----------------------------------------------------------------------


class IncomingRequest:
    """One request of another node.

    Attributes:
        body: What is asked for.
        timeout_ms: What is left of the caller's time.
        trace: The caller's traceparent, empty without one.
        withdrawn: Called once when nobody waits for the answer any more.
    """

    __slots__ = ("_id", "_line", "body", "timeout_ms", "trace", "withdrawn")

    def __init__(self, line: AnsweringLine, packet: AskPacket) -> None:
        self._line = line
        self._id = packet.id
        self.body = packet.body
        self.timeout_ms = packet.timeout_ms
        self.trace = packet.trace
        self.withdrawn: Callable[[], object] | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._line.has_open(self._id)

    def answer(self, value: bytes) -> None:
        """Answer; harmless when nobody waits any more."""
        self._line.give(self._id, value)
        assert not self.is_open

    def fail(self, error: KelpieError) -> None:
        """Answer with an error; harmless when nobody waits any more."""
        self._line.give(self._id, error)
        assert not self.is_open


class AnsweringLine(Line):
    """The line of the side that was dialled."""

    def __init__(
        self,
        link: FrameLink,
        greeting: DialledSide,
        owner: LineOwner,
        telemetry: Telemetry,
        service: Answering,
    ) -> None:
        super().__init__(link, greeting, owner, telemetry)
        self._service = service
        self._requests: dict[int, IncomingRequest] = {}

    def has_open(self, id_: int) -> bool:
        """Whether the request has no answer, and somebody waits for it."""
        return id_ in self._requests

    def give(self, id_: int, value: bytes | KelpieError) -> None:
        """Answer a request; harmless when nobody waits for it."""
        if self._requests.pop(id_, None) is None or self._lost:
            return
        if isinstance(value, bytes):
            self._channel.answer(id_, value)
        else:
            self._channel.fail(id_, value)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def take(self, packet: Packet) -> None:
        """Hand a request to the service, or take one back."""
        if isinstance(packet, AskPacket):
            request = IncomingRequest(self, packet)
            self._requests[packet.id] = request
            self._service.asked(request)
            return
        assert isinstance(packet, CancelPacket), "the channel lets nothing else by"
        request = self._requests.pop(packet.id)
        assert not request.is_open, "what was taken back has no answer"
        if request.withdrawn is not None:
            request.withdrawn()

    def pressed(self, *, is_behind: bool) -> None:
        """Read no further request while the answers to earlier ones are not taken.

        Only this side holds: if both did, they would wait for each other for ever.
        """
        super().pressed(is_behind=is_behind)
        self._link.hold(is_held=is_behind)

    def fall(self, reason: str) -> None:
        """Take every request back: nobody hears its answer."""
        del reason
        assert self.is_lost, "only a lost line falls"
        requests, self._requests = self._requests, {}
        for request in requests.values():
            if request.withdrawn is not None:
                request.withdrawn()
        assert not self._requests
