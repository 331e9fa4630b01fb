"""Outgoing HTTP as a port: one streamed exchange at a time.

The product parses wire bytes itself (server-sent events, JSON); a world only moves them. The
server's own sockets are not here: a simulation enters at the ASGI callable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from kelpie.core.errors import BusyError


class NetworkError(BusyError):
    """The exchange failed below HTTP.

    Attributes:
        sent: Whether any byte of the request may have reached the peer. When false, the request
            was provably never received, and may be repeated whatever it asks for.
    """

    code = "busy"

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message, sent=sent)
        self.sent = sent


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One HTTP request.

    ``connect_timeout_ms`` bounds the connection, ``idle_timeout_ms`` each wait for more bytes.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    connect_timeout_ms: int
    idle_timeout_ms: int


class HttpResponse(Protocol):
    """A response whose head has arrived; header names are lower case."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, in pieces of any size.

        Raises:
            NetworkError: The body broke off or stalled past the idle timeout.
        """
        ...


class Network(Protocol):
    """The world's outgoing connections."""

    def exchange(self, request: HttpRequest) -> AbstractAsyncContextManager[HttpResponse]:
        """Send ``request`` and yield the response; leaving the context closes the exchange.

        Raises:
            NetworkError: No response head arrived.
        """
        ...
