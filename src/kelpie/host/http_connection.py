"""One client connection of HTTP/1.1: dialled, used for one exchange after another, and closed.

Owns a transport. Must never repeat a request, and never hands bytes of one exchange to another:
whatever comes while no exchange runs closes the connection.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from pathlib import Path
from typing import Final

from kelpie.host.http_response import BrokenError, Incoming
from kelpie.host.http_route import Proxy, Route

_EYEBALLS_DELAY_S: Final = 0.25  # RFC 8305's: the next address is tried while one hangs


class Connection(asyncio.Protocol):
    """A connection; at most one exchange runs on it at a time.

    Attributes:
        is_lost: Whether it has ended, here or at the peer.
        idle_since_s: When its last exchange ended, in the loop's time.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._incoming: Incoming | None = None
        self.is_lost = False
        self._paused = False
        self._unwritten_bytes = 0
        self.idle_since_s = 0.0

    # --- asyncio's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Feed the exchange; without one the peer has no business to speak."""
        if self._incoming is None:
            self.abort()
            return
        self._incoming.feed(data)
        if self._incoming.is_full and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Take the peer's end of sending as the end."""
        self._end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._end(
            None if exc is None else f"the connection broke: {str(exc) or type(exc).__name__}"
        )

    def _end(self, reason: str | None) -> None:
        self.is_lost = True
        if self._incoming is not None:
            self._incoming.end(reason)

    # --- the pool's side ------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection can be used: open, and nothing waits to be read on it."""
        if self._transport is None or self.is_lost or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def send(self, request: bytes, *, has_body: bool) -> Incoming:
        """Begin an exchange: write a whole request and return its response, still to come.

        Raises:
            BrokenError: The connection is gone; nothing was written.
        """
        assert self._incoming is None, "one exchange at a time"
        if self._transport is None or self.is_lost or self._transport.is_closing():
            raise BrokenError("the connection was closed before the request was written")
        self._incoming = Incoming(has_body=has_body, resume=self._resume)
        self._transport.write(request)
        self._unwritten_bytes = self._transport.get_write_buffer_size()
        return self._incoming

    def has_moved(self) -> bool:
        """Whether the peer has taken part of the request since this was asked last."""
        before = self._unwritten_bytes
        self._unwritten_bytes = self._transport.get_write_buffer_size() if self._transport else 0
        return self._unwritten_bytes < before

    def release(self) -> bool:
        """End the exchange; return whether the connection can carry another one."""
        incoming, self._incoming = self._incoming, None
        assert incoming is not None, "an exchange that ends has begun"
        has_more = self._transport is not None and self._transport.get_write_buffer_size() > 0
        if self.is_lost or has_more or not incoming.leaves_connection_usable:
            incoming.end("the exchange was left")
            self.abort()
            return False
        self._resume()
        return True

    def abort(self) -> None:
        """Close the connection at once; an exchange on it fails."""
        self._end("the connection was closed here")
        if self._transport is not None:
            self._transport.abort()

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self.is_lost:
            self._paused = False
            self._transport.resume_reading()

    # --- dialling -------------------------------------------------------------------------------

    @classmethod
    async def dial_unix(cls, path: Path) -> Connection:
        """Connect to a Unix socket.

        Raises:
            OSError: Nobody listens there.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(cls, str(path))
        return connection

    @classmethod
    async def dial(cls, route: Route, context: ssl.SSLContext | None) -> Connection:
        """Connect to a host, with TLS if there is a context.

        Raises:
            OSError: It cannot be reached, or its certificate is not trusted.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            cls,
            route.host,
            route.port,
            ssl=context,
            server_hostname=route.host if context else None,
            happy_eyeballs_delay=_EYEBALLS_DELAY_S,
        )
        return connection

    @classmethod
    async def dial_through(
        cls, proxy: Proxy, route: Route, context: ssl.SSLContext, idle_s: float
    ) -> Connection:
        """Connect to a host through a proxy's tunnel, with TLS inside.

        Raises:
            BrokenError: The proxy refused the tunnel or spoke garbage.
            OSError: The proxy cannot be reached, or the host's certificate is not trusted.
        """
        connection = await cls.dial(proxy.route, None)
        try:
            await connection.open_tunnel(proxy, route, idle_s)
            await connection.start_tls(context, route.host)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def open_tunnel(self, proxy: Proxy, route: Route, idle_s: float) -> None:
        """Have a proxy, to which this leads, connect it to a host.

        Raises:
            BrokenError: It refused, or spoke garbage.
        """
        lines = [f"CONNECT {route.authority} HTTP/1.1", f"host: {route.authority}"]
        if proxy.authorization:
            lines.append(f"proxy-authorization: {proxy.authorization}")
        incoming = self.send("\r\n".join([*lines, "", ""]).encode("latin-1"), has_body=False)
        await incoming.wait_for_head(idle_s, self.has_moved)
        self._incoming = None
        if incoming.status // 100 != 2:
            raise BrokenError(f"the proxy {proxy.route} refused the tunnel ({incoming.status})")
        if incoming.has_surplus:
            raise BrokenError(f"the proxy {proxy.route} spoke inside the tunnel")

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Encrypt from here on.

        Raises:
            BrokenError: The connection was closed.
            OSError: The peer is not trusted, or does not speak TLS.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        encrypted = await loop.start_tls(self._transport, self, context, server_hostname=host)
        if encrypted is None:
            raise BrokenError("the connection was closed before TLS began")
        self._transport = encrypted
