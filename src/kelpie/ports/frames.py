"""Ordered connections that carry frames between nodes, as a port.

The host's own makes them of TCP with length prefixes, and TLS where it is asked for; the
simulation's of its links. What is in a frame is not their business.

A connection keeps the order of its frames and loses none until it is lost as a whole; then
``lost`` is called once, and nothing arrives any more. Until `FrameLink.admit` the other side is a
stranger, whose frames are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class FrameLink(Protocol):
    """This side of one connection."""

    @property
    def peer(self) -> str:
        """Who is at the other end, as far as the transport knows: an address, or a proven name."""
        ...

    def send(self, frame: bytes) -> None:
        """Queue one frame; frames of one tick leave in one write. Harmless once it is lost."""
        ...

    @property
    def proven(self) -> str:
        """The name that the other side's certificate proves; empty where there is none."""
        ...

    @property
    def queued_bytes(self) -> int:
        """How much waits to be taken by the other side."""
        ...

    def admit(self) -> None:
        """Take frames of the full size from now on: the other side has shown who it is."""
        ...

    def hold(self, *, is_held: bool) -> None:
        """Stop reading, or go on: the receiver is congested, or is so no more."""
        ...

    def close(self) -> None:
        """End the connection; what is queued may be lost. Harmless when it is."""
        ...


class FrameReceiver(Protocol):
    """What a connection tells its owner; called on the loop, never re-entered."""

    def frame(self, data: bytes) -> None:
        """Take one whole frame."""
        ...

    def pressed(self, *, is_behind: bool) -> None:
        """Note that the other side takes less than is sent, or that it has caught up."""
        ...

    def lost(self, reason: str) -> None:
        """Note that the connection is gone."""
        ...


class FrameListener(Protocol):
    """A place where connections arrive."""

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        ...

    async def close(self) -> None:
        """Take no further connection, and end those that it took."""
        ...


class Frames(Protocol):
    """The world's connections between nodes."""

    async def connect(
        self, address: str, accept: Callable[[FrameLink], FrameReceiver], *, timeout_ms: int
    ) -> FrameLink:
        """Connect to ``address`` and return this side of the connection.

        Raises:
            NetworkError: Nobody answered, or the other side is not who it must be.
        """
        ...

    async def listen(
        self, address: str, accept: Callable[[FrameLink], FrameReceiver]
    ) -> FrameListener:
        """Take connections at ``address`` (``host:port``, port 0 for any free one).

        Raises:
            ConfigError: The address cannot be listened at.
        """
        ...
