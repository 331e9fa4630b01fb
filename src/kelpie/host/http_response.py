"""One HTTP/1.1 response as it comes in: bounded parsing, and waiting for more of it.

Owns the parser and what it has brought. Must never touch a socket: the connection feeds it, pauses
when it holds enough, and tells it how the connection ended.
Invariants: memory is bounded by the bounds below and one read of the transport; a body that ends
early is an error, never a short body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

import httptools

HEAD_BYTES_MAX: Final = 64 * 1024  # of a head, and of framing that brings no body
BUFFER_BYTES_MAX: Final = 256 * 1024  # of a body that nobody has taken yet; then reading pauses
_WITHOUT_BODY: Final = frozenset({204, 304})


class BrokenError(Exception):
    """The response cannot be completed; the message says why."""


class Incoming:
    """A response that is arriving.

    Args:
        has_body: False for the response to HEAD, whose headers speak of a body that never comes.
        resume: Called when the buffer has room again.
    """

    __slots__ = (
        "_barren_bytes",
        "_buffered_bytes",
        "_ends_with_connection",
        "_error",
        "_has_body",
        "_head_came",
        "_headers",
        "_heard",
        "_is_complete",
        "_is_surplus",
        "_keep_alive",
        "_parser",
        "_pieces",
        "_resume",
        "_status",
        "_waiter",
    )

    def __init__(self, *, has_body: bool, resume: Callable[[], None]) -> None:
        self._has_body = has_body
        self._resume = resume
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._status = 0
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._buffered_bytes = 0
        self._barren_bytes = 0
        self._error: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._heard = self._head_came = self._is_complete = False
        self._keep_alive = self._is_surplus = self._ends_with_connection = False

    @property
    def status(self) -> int:
        """The status code, once the head has come."""
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case; repeated ones are joined by a comma."""
        return self._headers

    @property
    def heard(self) -> bool:
        """Whether any byte has come."""
        return self._heard

    @property
    def has_surplus(self) -> bool:
        """Whether more has come than the response."""
        return self._is_surplus

    @property
    def is_full(self) -> bool:
        """Whether the connection should pause."""
        return self._buffered_bytes >= BUFFER_BYTES_MAX

    @property
    def leaves_connection_usable(self) -> bool:
        """Whether the response has come whole and its connection can carry another."""
        return self._is_complete and self._keep_alive and not self._is_surplus and not self._error

    # --- what the connection says ---------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        if self._parser is None:
            self._is_surplus = True
            return
        self._heard = True
        buffered, head_came = self._buffered_bytes, self._head_came
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            # What comes after a whole response spoils the connection, not the response.
            self._is_surplus = True
            if not self._is_complete:
                self._fail(f"the response is not HTTP/1.1 ({error})")
        self._bound(len(data), has_brought=self._buffered_bytes > buffered, head_came=head_came)
        if self._is_complete:
            self._parser = None  # which refers back here
        self._wake()

    def end(self, reason: str | None) -> None:
        """Note that the connection is gone: closed by the peer, or for a reason."""
        if self._is_complete:
            return
        if self._head_came and self._ends_with_connection and reason is None:
            self._is_complete = True
        else:
            self._fail(reason or "the connection was closed before the response was complete")
        self._parser = None
        self._wake()

    # --- what the exchange asks -----------------------------------------------------------------

    async def wait_for_head(self, idle_s: float, is_moving: Callable[[], bool]) -> None:
        """Return once the head has come; while ``is_moving`` the silence does not count.

        Raises:
            BrokenError: The connection ended, fell silent for ``idle_s``, or spoke garbage.
        """
        while not self._head_came:
            self._raise_error()
            await self._wait(idle_s, is_moving)
        encoding = self._headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            self._error = f"the body is encoded ({encoding[:40]}), which was not asked for"
        self._raise_error()

    async def chunks(self, idle_s: float) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            BrokenError: It broke off, or nothing came for ``idle_s``.
        """
        while True:
            if self._pieces:
                chunk = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                was_full, self._buffered_bytes = self.is_full, 0
                if was_full:
                    self._resume()
                yield chunk
            elif self._is_complete:
                return
            else:
                self._raise_error()
                await self._wait(idle_s, _never)

    # --- the parser's callbacks -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Notice a second response, which nobody asked for."""
        self._is_surplus = self._is_surplus or self._is_complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; trailers are dropped."""
        if self._head_came:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        known = self._headers.get(key)
        self._headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        """Take the head, unless it is an interim one."""
        if self._head_came:
            return
        assert self._parser is not None, "only a parser calls back"
        self._status = self._parser.get_status_code()
        if self._status < 200:
            return
        self._head_came = True
        is_chunked = self._headers.get("transfer-encoding", "").lower().endswith("chunked")
        is_counted = "content-length" in self._headers
        is_empty = self._status in _WITHOUT_BODY
        self._ends_with_connection = not (is_chunked or is_counted or is_empty)
        self._keep_alive = self._has_body and not self._ends_with_connection
        self._keep_alive = self._keep_alive and self._parser.should_keep_alive()
        if not self._has_body:
            self._is_complete = True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._is_complete:
            self._is_surplus = True
            return
        self._pieces.append(body)
        self._buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        """Note the end; after an interim response the real one follows."""
        if self._head_came:
            self._is_complete = True
        else:
            self._headers = {}

    # --- within ---------------------------------------------------------------------------------

    def _bound(self, size: int, *, has_brought: bool, head_came: bool) -> None:
        """Fail a peer that keeps sending without getting anywhere."""
        if has_brought or head_came != self._head_came:
            self._barren_bytes = 0
            return
        self._barren_bytes += size
        if self._barren_bytes > HEAD_BYTES_MAX and not self._is_complete:
            what = "framing between two pieces of the body" if self._head_came else "head"
            self._fail(f"the {what} is larger than {HEAD_BYTES_MAX:,} bytes")

    def _fail(self, reason: str) -> None:
        self._error = self._error or reason
        self._parser = None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise BrokenError(self._error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, idle_s: float, is_moving: Callable[[], bool]) -> None:
        """Return once something has come."""
        loop = asyncio.get_running_loop()
        while True:
            self._waiter = loop.create_future()
            timer = loop.call_later(idle_s, _time_out, self._waiter)
            try:
                await self._waiter
            except TimeoutError:
                if not is_moving():
                    self._fail(f"nothing came for {idle_s:g} s")
                    self._raise_error()
            else:
                return
            finally:
                self._waiter = None
                timer.cancel()


def _time_out(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _never() -> bool:
    return False
