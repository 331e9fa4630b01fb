"""What nodes say to each other: tagged arrays in msgpack, many to a frame.

A frame after the greeting is an array of packets. A newer minor version may add fields at the end
of a struct, with defaults: older nodes pass them over. A new kind of packet needs a new protocol
version, and is sent only to nodes that agreed on it.

Invariants: tags and the order of fields never change; what is decoded is bounded by its frame.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from kelpie.actors.described import Described
from kelpie.core.limits import RPC_BATCH_PACKETS_MAX


class Versions(NamedTuple):
    """The protocol versions that a node speaks, both ends included."""

    low: int
    high: int


VERSIONS: Final = Versions(1, 1)


# --- greeting -----------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First, from the side that connected: who it is, what it speaks, and whom it dialled."""

    low: int
    high: int
    cluster: str
    node: str
    target: str
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """From the side that was dialled: who it is, and the version that both will speak."""

    version: int
    node: str
    nonce: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """From the side that connected, then from the other: that it knows the cluster's secret."""

    proof: bytes


class GreetingRefusal(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Instead of the next step: why there will be none."""

    reason: str
    text: str


Greeting: TypeAlias = Hello | Challenge | Proof | GreetingRefusal

# --- what is asked for --------------------------------------------------------------------------


class ActorCall(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Run one turn of an actor; the answer is its encoded reply.

    ``actor`` is its text form, ``message`` the encoded `Message`. ``is_internal`` calls are taken
    by a node that shuts down. ``attempt`` counts from 0 how often this key was sent before.
    ``chain`` are the actors that wait for this call, outermost first.
    """

    actor: str
    message: bytes
    principal: str
    key: str
    is_internal: bool = False
    attempt: int = 0
    chain: tuple[str, ...] = ()


class ActorQuery(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Answer from the last finished turn's state of an actor."""

    actor: str
    message: bytes
    chain: tuple[str, ...] = ()


class EdgeCall(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Do what a caller asked another node's HTTP edge for; the answer is an `EdgeAnswer`.

    ``path`` and ``query`` are as they were received, percent-encoded. Who asks is what the first
    node found; ``is_local`` says that the request came over its Unix socket. ``key`` is the
    idempotency key, empty without one.
    """

    method: str
    path: str
    query: bytes
    body: bytes
    tenant: str
    principal: str
    is_local: bool
    key: str
    prefers_async: bool


Asked: TypeAlias = ActorCall | ActorQuery | EdgeCall


class EdgeAnswer(msgspec.Struct, frozen=True, array_like=True):
    """A whole HTTP response, without the headers that belong to a connection."""

    status: int
    media: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


# --- packets ------------------------------------------------------------------------------------


class AskPacket(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A request: ``timeout_ms`` is what is left of the caller's time, ``trace`` its traceparent."""

    id: int
    timeout_ms: int
    trace: str
    body: Asked


class AnswerPacket(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """The answer to a request, encoded by whoever gave it."""

    id: int
    value: bytes


class FailPacket(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The typed error in place of an answer."""

    id: int
    error: Described


class CancelPacket(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Nobody waits for this request any more."""

    id: int


class PingPacket(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Are you there?"""

    number: int


class PongPacket(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """The answer to the ping of that number."""

    number: int


class WakeHint(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Messages up to ``message_id`` wait for actors of these shards; a hint, and may be lost."""

    shards: tuple[int, ...]
    message_id: int


class WatchHint(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """This node wants, or no longer wants, to hear of an actor's news; of all if it is empty."""

    actor: str
    is_wanted: bool


class ChangedHint(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """There is news of these actors; a hint, and may be lost."""

    actors: tuple[str, ...]


class LookHint(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Nodes or shards have changed: look at the cluster now; a hint, and may be lost."""


Hint: TypeAlias = WakeHint | WatchHint | ChangedHint | LookHint
Packet: TypeAlias = (
    AskPacket | AnswerPacket | FailPacket | CancelPacket | PingPacket | PongPacket | Hint
)

_encoder: Final = msgspec.msgpack.Encoder()
_greetings: Final[msgspec.msgpack.Decoder[Greeting]] = msgspec.msgpack.Decoder(Greeting)
_packets: Final[msgspec.msgpack.Decoder[list[Packet]]] = msgspec.msgpack.Decoder(
    Annotated[list[Packet], msgspec.Meta(max_length=RPC_BATCH_PACKETS_MAX)]
)


class MalformedError(ValueError):
    """Bytes of another node that say nothing; never leaves this package."""


# Besides its own errors the decoder lets those of Python's texts and of its stack pass.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(value: Any) -> bytes:
    """Return one greeting or packet as msgpack."""
    return _encoder.encode(value)


def decode_greeting(frame: bytes) -> Greeting:
    """Return what a frame of the greeting says.

    Raises:
        MalformedError: It is no greeting.
    """
    try:
        return _greetings.decode(frame)
    except UNDECODABLE:
        raise MalformedError("no greeting of a node") from None


def decode_packets(frame: bytes) -> list[Packet]:
    """Return the packets of one frame.

    Raises:
        MalformedError: It is no list of packets, or has too many.
    """
    try:
        return _packets.decode(frame)
    except UNDECODABLE:
        raise MalformedError("no packets of a node") from None


def join_packets(packets: list[bytes]) -> bytes:
    """Return the frame that holds these encoded packets."""
    count = len(packets)
    assert 0 < count <= RPC_BATCH_PACKETS_MAX, "a frame holds a bounded number of packets"
    # An array of up to 65,535 items, as msgpack's array 16: three bytes, then the items.
    return b"".join((b"\xdc", count.to_bytes(2, "big"), *packets))
