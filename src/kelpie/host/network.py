"""Outgoing HTTP/1.1 over asyncio: a pool of kept connections and one exchange at a time on each.

Never follows a redirect (a credential would go along), never sends loopback traffic through a
proxy, never asks for an encoded body, never repeats a request that may have been received: only a
GET or HEAD on a kept connection that the peer closed without a byte is sent once more.
Invariants: a connection carries one exchange; an exchange that is left early, cancelled or broken
takes its connection with it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from kelpie.core.errors import InvalidFieldError
from kelpie.host.http_connection import Connection
from kelpie.host.http_response import BrokenError, Incoming
from kelpie.host.http_route import Place, Proxy, ProxyRules, Route, parse_url
from kelpie.ports.network import HttpRequest, NetworkError

_EXCHANGES_MAX: Final = 256  # above the concurrent model calls of one node, with room to spare
_IDLE_MAX: Final = 32  # kept connections, all hosts together
_IDLE_S_MAX: Final = 30.0  # below the keep-alive of common servers, so that they rarely close first
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE"})
_SAFE: Final = frozenset({"GET", "HEAD"})
_OURS: Final = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class _Call(NamedTuple):
    """A request, ready to be written, and where it goes."""

    place: Place
    proxy: Proxy | None
    data: bytes
    has_body: bool
    is_safe: bool
    connect_s: float
    idle_s: float

    @property
    def route(self) -> Route:
        """What its connection must lead to."""
        if self.proxy is not None and self.place.route.scheme == "http":
            return self.proxy.route
        return self.place.route


class _Response:
    """A response whose head has arrived."""

    def __init__(self, incoming: Incoming, call: _Call) -> None:
        self._incoming = incoming
        self._call = call

    @property
    def status(self) -> int:
        """The status code."""
        return self._incoming.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return self._incoming.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            NetworkError: The body broke off or stalled past the idle timeout.
        """
        try:
            async for chunk in self._incoming.chunks(self._call.idle_s):
                yield chunk
        except BrokenError as error:
            raise _network_error(self._call, error, sent=True) from error


class HostNetwork:
    """Implements the network port; a context manager that closes its connections.

    Args:
        unix_socket: Send every request to this socket instead of the URL's host.
        environment: Where proxies are named; none apply without it, nor over a Unix socket.
        tls: Trust other than the system's, for private peers.
    """

    def __init__(
        self,
        *,
        unix_socket: Path | None = None,
        environment: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._unix_socket = unix_socket
        self._proxies = ProxyRules({} if unix_socket else environment or {})
        self._tls = tls
        self._idle: dict[Route, list[Connection]] = {}
        self._idle_count = 0
        self._busy: set[Connection] = set()
        self._exchange_count = 0
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; exchanges in flight fail."""
        self._is_closed = True
        idle = [connection for kept in self._idle.values() for connection in kept]
        self._idle.clear()
        self._idle_count = 0
        for connection in (*idle, *self._busy):
            connection.abort()
        await asyncio.sleep(0)  # aborted transports let go of their sockets in the next turn

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncGenerator[_Response]:
        """Send ``request`` and yield the response; leaving the context closes the exchange.

        Raises:
            NetworkError: No response head arrived; ``sent`` says whether the request may have.
            InvalidFieldError: The URL or a header cannot be sent.
            UnavailableError: The environment asks for a kind of proxy that is not supported.
        """
        call = self._prepare(request)
        self._admit(call)
        self._exchange_count += 1
        try:
            connection, incoming = await self._begin(call)
            try:
                yield _Response(incoming, call)
            finally:
                self._end(call, connection)
        finally:
            self._exchange_count -= 1

    def _prepare(self, request: HttpRequest) -> _Call:
        place = parse_url(request.url)
        proxy = self._proxies.find(place.route)
        return _Call(
            place=place,
            proxy=proxy,
            data=_encode_head(request, place, proxy) + request.body,
            has_body=request.method != "HEAD",
            is_safe=request.method in _SAFE,
            connect_s=request.connect_timeout_ms / 1_000,
            idle_s=request.idle_timeout_ms / 1_000,
        )

    def _admit(self, call: _Call) -> None:
        problem = ""
        if self._is_closed:
            problem = "the network was closed"
        elif self._exchange_count >= _EXCHANGES_MAX:
            problem = f"{_EXCHANGES_MAX} exchanges are open; try again later"
        if problem:
            raise _network_error(call, problem, sent=False)

    async def _begin(self, call: _Call) -> tuple[Connection, Incoming]:
        """Return the connection that carries the exchange, once the response's head has come."""
        kept = self._take_idle(call.route)
        if kept is not None:
            incoming = await self._try(call, kept, may_repeat=call.is_safe)
            if incoming is not None:
                return kept, incoming
        connection = await self._dial(call)
        incoming = await self._try(call, connection, may_repeat=False)
        assert incoming is not None, "only what may be repeated goes unanswered in silence"
        return connection, incoming

    async def _try(
        self, call: _Call, connection: Connection, *, may_repeat: bool
    ) -> Incoming | None:
        """Write the request and wait for the head; a connection that fails in this is closed.

        With ``may_repeat``, return None when the peer closed the connection without a byte.
        """
        try:
            incoming = connection.send(call.data, has_body=call.has_body)
        except BrokenError as error:
            connection.abort()
            raise _network_error(call, error, sent=False) from error
        self._busy.add(connection)
        try:
            await incoming.wait_for_head(call.idle_s, connection.has_moved)
        except BrokenError as error:
            was_closed = connection.is_lost and not incoming.heard and not self._is_closed
            self._end(call, connection)
            if may_repeat and was_closed:
                return None
            raise _network_error(call, error, sent=True) from error
        except BaseException:
            self._end(call, connection)
            raise
        return incoming

    def _end(self, call: _Call, connection: Connection) -> None:
        self._busy.discard(connection)
        if not connection.release():
            return
        if self._is_closed or self._idle_count >= _IDLE_MAX:
            connection.abort()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.setdefault(call.route, []).append(connection)
        self._idle_count += 1

    def _take_idle(self, route: Route) -> Connection | None:
        """Return the connection that rested last and still can be used; close those that cannot."""
        kept = self._idle.get(route)
        oldest_s = asyncio.get_running_loop().time() - _IDLE_S_MAX
        while kept:
            connection = kept.pop()
            self._idle_count -= 1
            if not kept:
                del self._idle[route]
            if connection.idle_since_s >= oldest_s and connection.is_usable:
                return connection
            connection.abort()
        return None

    async def _dial(self, call: _Call) -> Connection:
        try:
            async with asyncio.timeout(call.connect_s):
                return await self._connect(call)
        except TimeoutError as error:
            problem = f"no connection within {call.connect_s:g} s"
            raise _network_error(call, problem, sent=False) from error
        except (OSError, BrokenError) as error:
            raise _network_error(call, error, sent=False) from error

    async def _connect(self, call: _Call) -> Connection:
        if self._unix_socket is not None:
            return await Connection.dial_unix(self._unix_socket)
        if call.route.scheme == "http":
            return await Connection.dial(call.route, None)
        if self._tls is None:
            # The system's certificates: a private authority is installed there. Reading them takes
            # tens of milliseconds, which is why it happens beside the loop, and once.
            loop = asyncio.get_running_loop()
            self._tls = await loop.run_in_executor(None, ssl.create_default_context)
        if call.proxy is None:
            return await Connection.dial(call.route, self._tls)
        return await Connection.dial_through(call.proxy, call.route, self._tls, call.connect_s)


def _encode_head(request: HttpRequest, place: Place, proxy: Proxy | None) -> bytes:
    if not _TOKEN.fullmatch(request.method):
        raise InvalidFieldError("method", "is not an HTTP method")
    target = place.target
    lines = [f"host: {place.host_header}", "accept-encoding: identity"]
    if proxy is not None and place.route.scheme == "http":
        target = f"http://{place.host_header}{target}"
        if proxy.authorization:
            lines.append(f"proxy-authorization: {proxy.authorization}")
    has_authorization = False
    for name, value in request.headers.items():
        lower = name.lower()
        assert lower not in _OURS, f"{lower} is the connection's own business"
        has_authorization |= lower == "authorization"
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            # Without the value: it may be a credential.
            problem = "must be a name and Latin-1 text without line breaks"
            raise InvalidFieldError(f"header {name[:40]!r}", problem)
        lines.append(f"{name}: {value}")
    if place.authorization and not has_authorization:
        lines.append(f"authorization: {place.authorization}")
    if request.body or request.method not in _WITHOUT_BODY:
        lines.append(f"content-length: {len(request.body)}")
    return "\r\n".join([f"{request.method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def _network_error(call: _Call, error: Exception | str, *, sent: bool) -> NetworkError:
    detail = str(error) or type(error).__name__
    return NetworkError(f"{call.place.route}: {detail}", sent=sent)
