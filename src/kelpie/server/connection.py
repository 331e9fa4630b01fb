"""HTTP/1.1 on one connection: what arrives is bounded, and an answer leaves in one write.

uvicorn's protocol with three things of our own: bounds on a request's head, on its arrival and on
how many are connected; one timer for each connection instead of two for each request; and the head
of an answer that waits for its body, so that a complete answer costs one system call.
"""

from __future__ import annotations

import asyncio
import resource
from math import inf
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from kelpie.core.limits import (
    CONNECTIONS_MAX,
    REQUEST_HEADERS_BYTES_MAX,
    REQUEST_RECEIVE_TIMEOUT_MS,
)

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s"
)
_TOO_LARGE_BODY: Final = (
    b'{"error":{"code":"headers_too_large","message":"the request line and headers are larger than'
    b' %d bytes","fields":{"limit":%d},"retriable":false},"detail":"headers too large"}'
)


class Exchange(RequestResponseCycle):
    """One request and its answer. A head that announces its length waits for the body."""

    _head: Any = None

    async def send(self, message: Any) -> None:
        """Send one ASGI event; a head with a length leaves together with the whole body.

        Raises:
            RuntimeError: The events do not make an answer.
        """
        if self.response_started or self.disconnected:
            await super().send(message)
        elif self._head is None or message["type"] == "http.response.start":
            if message["type"] == "http.response.start" and _announces_length(message):
                self._head = message
            else:
                await super().send(message)
        else:
            await self._send_body(message)

    async def _send_body(self, message: Any) -> None:
        head, self._head = self._head, None
        body = message.get("body", b"")
        if message.get("more_body") or self.scope["method"] == "HEAD":
            await super().send(head)
            await super().send(message)
            return
        if self.flow.write_paused:
            await self.flow.drain()
            if self.disconnected:
                return
        answer = self._complete(head, body)
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(answer)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _complete(self, head: Any, body: bytes) -> bytes:
        """Return the whole answer, or raise `RuntimeError` when it would not be one."""
        lines = [STATUS_LINE[head["status"]]]
        for name, value in (*self.default_headers, *head["headers"]):
            if HEADER_VALUE_RE.search(value):
                raise RuntimeError(f"header {name!r} has a value that no header may have")
            if name == b"content-length" and int(value) != len(body):
                raise RuntimeError(f"{len(body)} bytes of body, {value!r} announced")
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", body)
        return b"".join(lines)


def _announces_length(message: Any) -> bool:
    return any(name == b"content-length" for name, _ in message["headers"])


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with bounds on a request's head, on its arrival, and on how many are connected.

    The parser itself knows no bound. Who sends half a request, or nothing at all, would otherwise
    hold a descriptor for ever, and the store needs descriptors too.

    ``_due`` is the loop's time at which the connection ends unless something happens before, and
    one timer looks at it now and then: nearly every request arrives whole and is followed by
    another, and a timer of its own would cost it more than its parsing.
    """

    receive_timeout_s: ClassVar[float] = REQUEST_RECEIVE_TIMEOUT_MS / 1_000
    connections_max: ClassVar[int] = CONNECTIONS_MAX

    # The library's own, without types of their own.
    app: Any
    parser: Any
    url: bytes

    _head_bytes = 0
    _is_receiving = True
    _due = inf
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or close it when there are too many."""
        super().connection_made(transport)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self.connections) > min(self.connections_max, files // 2):
            transport.abort()
        else:
            self._expect_message()
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    # --- a request ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin counting bytes and time."""
        self._head_bytes = 0
        self._expect_message()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Stop the time: the request is here."""
        self._is_receiving = False
        self._due = inf
        super().on_message_complete()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count and keep one header."""
        self._count(len(name) + len(value))
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin the exchange, or queue it behind the one that is being answered."""
        own: Any = self  # uvicorn gives its attributes types in part alone
        version = own.parser.get_http_version()
        url = httptools.parse_url(own.url)
        path = url.path.decode("ascii")
        self.scope["method"] = own.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""
        before = cast("Exchange | None", self.cycle)  # none before the first request
        self.cycle = Exchange(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and own.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, own.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, own.app))

    def on_response_complete(self) -> None:
        """Begin the next exchange, or wait for the next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._is_receiving:
            self._due = self.loop.time() + self.timeout_keep_alive

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed, or whose head is too large."""
        if self._head_bytes <= REQUEST_HEADERS_BYTES_MAX:
            super().send_400_response(msg)
            return
        bound = REQUEST_HEADERS_BYTES_MAX
        body = _TOO_LARGE_BODY % (bound, bound)
        self.transport.write(_TOO_LARGE % (len(body), body))
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > REQUEST_HEADERS_BYTES_MAX:
            raise ValueError("the request head is too large")

    # --- time -----------------------------------------------------------------------------------

    def _expect_message(self) -> None:
        self._is_receiving = True
        self._due = self.loop.time() + self.receive_timeout_s

    def _look(self) -> None:
        """End the connection if its time is up; look again no later than it could be."""
        now = self.loop.time()
        if now >= self._due:
            self._give_up()
        if now < self._due:
            longest_s = min(self.receive_timeout_s, self.timeout_keep_alive)
            self._timer = self.loop.call_at(min(self._due, now + longest_s), self._look)

    def _give_up(self) -> None:
        """Close a connection whose request does not arrive, unless an earlier one is answered."""
        cycle = cast("Exchange | None", self.cycle)  # none before the first request
        if not self._is_receiving:
            self.transport.close()
        elif cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._expect_message()
        else:
            self.transport.abort()
