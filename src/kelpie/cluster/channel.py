"""One connection's packets after the greeting: what may be said, by whom, and in which order.

Pure: frames in, checked packets out, and frames to send. The side that connected asks, the other
answers; hints go both ways. Ids of requests count from one, so that a frame which was repeated,
left out or overtaken shows, and ends the connection.

Invariants: an answer belongs to a request of this connection and comes at most once; no frame is
larger than its bound; what is taken was given, in that order.
"""

from __future__ import annotations

from typing import Final

from kelpie.actors.described import describe
from kelpie.cluster.messages import (
    AnswerPacket,
    Asked,
    AskPacket,
    CancelPacket,
    FailPacket,
    Hint,
    MalformedError,
    Packet,
    PingPacket,
    PongPacket,
    decode_packets,
    encode,
    join_packets,
)
from kelpie.core import limits
from kelpie.core.errors import KelpieError, LimitExceededError, OverloadedError

_ANSWERS: Final = (AnswerPacket, FailPacket)
_NO_FIELDS: Final = frozenset({"self", "message"})  # an error has them already


class ChannelError(KelpieError):
    """The other side broke the protocol; the connection ends.

    Attributes:
        reason: How, in one word.
    """

    code = "internal"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, reason=reason)
        self.reason = reason


class Channel:
    """One side's books of a connection.

    Args:
        asks: Whether this side asks and the other answers.
        in_flight_max: How many requests may wait for their answers.
    """

    __slots__ = (
        "_asks",
        "_in_flight_max",
        "_last_id",
        "_open",
        "_outgoing",
        "_outgoing_bytes",
        "_pings",
    )

    def __init__(self, *, asks: bool, in_flight_max: int = limits.RPC_IN_FLIGHT_MAX) -> None:
        self._asks = asks
        self._in_flight_max = in_flight_max
        self._last_id = 0
        self._open: set[int] = set()
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._pings = 0

    @property
    def in_flight(self) -> int:
        """How many requests have no answer, and are not cancelled."""
        return len(self._open)

    @property
    def outgoing_bytes(self) -> int:
        """What waits for `take`."""
        return self._outgoing_bytes

    # --- out ------------------------------------------------------------------------------------

    def ask(self, body: Asked, *, timeout_ms: int, trace: str = "") -> int:
        """Queue a request and return its id.

        Raises:
            OverloadedError: Too many requests have no answer yet.
            LimitExceededError: The request is too large for a frame.
        """
        assert self._asks, "the side that was dialled asks nothing"
        if len(self._open) >= self._in_flight_max:
            text = f"{self._in_flight_max:,} requests wait for one node; try again"
            raise OverloadedError(text, limit=self._in_flight_max)
        id_ = self._last_id + 1
        self._queue(encode(AskPacket(id_, timeout_ms, trace, body)))
        self._last_id = id_
        self._open.add(id_)
        assert len(self._open) <= self._in_flight_max, "bounded above"
        return id_

    def cancel(self, id_: int) -> None:
        """Say that nobody waits for this request any more; harmless once it has its answer."""
        assert self._asks, "who asks takes back"
        if id_ in self._open:
            self._open.remove(id_)
            self._queue(encode(CancelPacket(id_)))
        assert id_ not in self._open

    def answer(self, id_: int, value: bytes) -> None:
        """Queue the answer to a request; harmless once it is cancelled.

        An answer that is too large for a frame becomes the error that says so.
        """
        assert not self._asks, "the side that was dialled answers"
        if id_ not in self._open:
            return
        size = len(value)
        if size > limits.RPC_BODY_BYTES_MAX:
            self.fail(id_, _too_large("answer", size))
            return
        self._open.remove(id_)
        self._queue(encode(AnswerPacket(id_, value)))
        assert id_ not in self._open, "a request has one answer"

    def fail(self, id_: int, error: KelpieError) -> None:
        """Queue an error in place of an answer; harmless once the request is cancelled."""
        assert not self._asks, "the side that was dialled answers"
        if id_ in self._open:
            self._open.remove(id_)
            self._queue(encode(FailPacket(id_, describe(error))))
        assert id_ not in self._open

    def hint(self, hint: Hint) -> None:
        """Queue a hint."""
        self._queue(encode(hint))

    def ping(self) -> None:
        """Ask whether the other side is there."""
        assert self._asks, "the side that asks also pings"
        self._pings += 1
        self._queue(encode(PingPacket(self._pings)))
        assert self._outgoing, "a ping leaves with the next frame"

    def _queue(self, packet: bytes) -> None:
        size = len(packet)
        if size > limits.FRAME_BYTES_MAX - 8:
            raise _too_large("request", size)
        self._outgoing.append(packet)
        self._outgoing_bytes += size

    def take(self) -> list[bytes]:
        """Return what is queued as frames, to be sent in this order."""
        packets, self._outgoing = self._outgoing, []
        total, self._outgoing_bytes = self._outgoing_bytes, 0
        assert (total > 0) == bool(packets), "what is queued is counted"
        if not packets:
            return []
        if total <= limits.RPC_BATCH_BYTES and len(packets) <= limits.RPC_BATCH_PACKETS_MAX:
            return [join_packets(packets)]
        return _cut(packets)

    # --- in -------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> list[Packet]:
        """Return what a frame says, checked; pings are answered here.

        An answer to a request that was cancelled is left out.

        Raises:
            ChannelError: It is malformed, or the other side may not say this now.
        """
        try:
            packets = decode_packets(frame)
        except MalformedError:
            raise ChannelError("malformed", "a frame holds no packets of a node") from None
        if self._asks:
            return [packet for packet in packets if self._admit_answer(packet)]
        return [packet for packet in packets if self._admit_request(packet)]

    def _admit_answer(self, packet: Packet) -> bool:
        """Check a packet of the side that answers; return whether anybody wants it."""
        if isinstance(packet, _ANSWERS):
            id_ = packet.id
            if not 0 < id_ <= self._last_id:
                raise ChannelError("order", "an answer to what was never asked")
            if isinstance(packet, FailPacket) and not _NO_FIELDS.isdisjoint(packet.error.fields):
                raise ChannelError("malformed", "an error with fields that no error has")
            if id_ not in self._open:
                return False
            self._open.remove(id_)
            return True
        if isinstance(packet, AskPacket | CancelPacket):
            raise ChannelError("side", "the side that was dialled asks")
        return self._admit_other(packet)

    def _admit_request(self, packet: Packet) -> bool:
        """Check a packet of the side that asks; return whether there is anything to do."""
        if isinstance(packet, AskPacket):
            if packet.id != self._last_id + 1 or packet.timeout_ms <= 0:
                raise ChannelError("order", "a request was lost, repeated or overtaken")
            if len(self._open) >= self._in_flight_max:
                raise ChannelError("flood", "more requests than the other side may have open")
            self._last_id = packet.id
            self._open.add(packet.id)
            return True
        if isinstance(packet, CancelPacket):
            if not 0 < packet.id <= self._last_id:
                raise ChannelError("order", "what was never asked is cancelled")
            if packet.id not in self._open:
                return False
            self._open.remove(packet.id)
            return True
        if isinstance(packet, _ANSWERS):
            raise ChannelError("side", "the side that asks answers")
        return self._admit_other(packet)

    def _admit_other(self, packet: Packet) -> bool:
        if isinstance(packet, PingPacket):
            self._queue(encode(PongPacket(packet.number)))
            return False
        if isinstance(packet, PongPacket):
            if not 0 < packet.number <= self._pings:
                raise ChannelError("order", "an answer to a ping that was never sent")
            return False
        return True

    def check_invariants(self) -> None:
        """Assert that the books agree."""
        assert len(self._open) <= self._in_flight_max, "too many requests are open"
        assert all(0 < id_ <= self._last_id for id_ in self._open)
        assert self._outgoing_bytes == sum(map(len, self._outgoing))


def _cut(packets: list[bytes]) -> list[bytes]:
    """Return frames of about `RPC_BATCH_BYTES`; a larger packet has a frame of its own."""
    frames: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for packet in packets:
        is_full = size + len(packet) > limits.RPC_BATCH_BYTES
        if batch and (is_full or len(batch) >= limits.RPC_BATCH_PACKETS_MAX):
            frames.append(join_packets(batch))
            batch, size = [], 0
        batch.append(packet)
        size += len(packet)
    frames.append(join_packets(batch))
    return frames


def _too_large(field: str, size: int) -> LimitExceededError:
    return LimitExceededError(field, actual=size, limit=limits.RPC_BODY_BYTES_MAX, unit="bytes")
