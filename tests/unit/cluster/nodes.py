"""Two nodes' greetings and channels, joined by nothing but function calls."""

from __future__ import annotations

from typing import Any

from kelpie.cluster.channel import Channel
from kelpie.cluster.handshake import ConnectingSide, DialledSide, Identity, Peer
from kelpie.cluster.messages import ActorCall, Packet, Versions

SECRET = b"sixteen bytes or more"
ADDRESS = "10.0.0.2:7000"


def identity(node: str, **given: Any) -> Identity:
    return Identity(**{"cluster": "c1", "node": node, "secret": SECRET, **given})


def connecting(who: Identity, *, proven: str = "", nonce: int = 1) -> ConnectingSide:
    return ConnectingSide(who, target=ADDRESS, proven=proven, nonce=bytes([nonce]) * 32)


def dialled(who: Identity, *, proven: str = "", nonce: int = 2) -> DialledSide:
    return DialledSide(who, proven=proven, nonce=bytes([nonce]) * 32)


def greet(one: ConnectingSide, other: DialledSide) -> tuple[Peer, Peer]:
    """Let both greet each other and return whom each has met."""
    challenge = other.receive(one.begin())
    proof = one.receive(challenge.frames[0])
    assert challenge.peer is None
    assert proof.peer is None
    last = other.receive(proof.frames[0])
    end = one.receive(last.frames[0])
    assert end.peer is not None
    assert last.peer is not None
    return end.peer, last.peer


def call(message: bytes = b"hello", **given: Any) -> ActorCall:
    asked = {"actor": "t/counter/a", "principal": "p", "key": "k", **given}
    return ActorCall(message=message, **asked)


def pass_on(source: Channel, target: Channel) -> list[Packet]:
    """Hand over what is queued, and return what arrives."""
    return [packet for frame in source.take() for packet in target.receive(frame)]


VERSION_TWO = Versions(1, 2)
