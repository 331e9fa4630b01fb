"""Simulated outgoing HTTP: handlers by URL prefix, bytes that arrive over virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kelpie.ports.network import HttpRequest, NetworkError

CONNECT_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a simulated peer sends back: a head, then pieces with ``pause_s`` before each.

    With ``breaks_off`` the connection is lost after the last piece.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    pieces: tuple[bytes, ...] = ()
    pause_s: float = 0.001
    breaks_off: bool = False


Peer = Callable[[HttpRequest], Awaitable[Answer]]


class _Response:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._answer.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._answer.pieces:
            await asyncio.sleep(self._answer.pause_s)
            yield piece
        if self._answer.breaks_off:
            raise NetworkError("the simulated connection was lost", sent=True)


class SimulatedNetwork:
    """Peers by URL prefix; whatever else is asked for cannot be reached."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def add_peer(self, prefix: str, peer: Peer) -> None:
        """Let ``peer`` answer every request whose URL starts with ``prefix``."""
        assert prefix.startswith(("http://", "https://")), "a peer has an absolute URL"
        taken = [other for other in self._peers if prefix.startswith(other)]
        assert not taken, f"{taken} would answer for {prefix}"
        self._peers[prefix] = peer

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncGenerator[_Response]:
        """Send ``request`` to its peer and yield the response.

        Raises:
            NetworkError: No peer has this address.
        """
        await asyncio.sleep(CONNECT_S)
        for prefix, peer in self._peers.items():
            if request.url.startswith(prefix):
                yield _Response(await peer(request))
                return
        raise NetworkError(f"nobody listens at {request.url}", sent=False)
