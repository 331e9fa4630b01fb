"""The product's ASGI app as an httpx transport that streams.

httpx's own ASGI transport returns once the app has finished, which a followed event log never
does. Invariants: the response's head is handed out as soon as the app sends it; a chunk the app
sends waits until the reader takes it; closing a response tells the app that the caller left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, MutableMapping
from typing import Any, Final, NamedTuple

import httpx

from kelpie.cli.world import AsgiApp

_CHUNKS_WAITING_MAX: Final = 64
_END: Final = b""
_FAREWELL_S: Final = 1.0


class _Head(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]


class AppTransport(httpx.AsyncBaseTransport):
    """Requests to an app in this process; each runs as a task of ``group``."""

    def __init__(self, app: AsgiApp, group: asyncio.TaskGroup) -> None:
        self._app = app
        self._group = group
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Run the app over one request and return once it has sent its head."""
        exchange = _Exchange(_scope(request), await request.aread())
        task = self._group.create_task(exchange.run(self._app))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        head = await exchange.head
        return httpx.Response(head.status, headers=head.headers, stream=exchange)

    async def aclose(self) -> None:
        """Give requests whose reader left a moment to end, then end them."""
        if self._tasks:
            _, running = await asyncio.wait(self._tasks, timeout=_FAREWELL_S)
            for task in running:
                task.cancel()


class _Exchange(httpx.AsyncByteStream):
    """One request and its response."""

    def __init__(self, scope: dict[str, Any], body: bytes) -> None:
        self.head: asyncio.Future[_Head] = asyncio.get_running_loop().create_future()
        self._scope = scope
        self._body: bytes | None = body
        self._chunks: deque[bytes] = deque()
        self._changed = asyncio.Condition()
        self._left = asyncio.Event()
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []

    async def run(self, app: AsgiApp) -> None:
        await app(self._scope, self._receive, self._send)
        if not self.head.done():
            self.head.set_exception(httpx.RemoteProtocolError("the app sent no response"))
        await self._put(_END)

    async def _receive(self) -> MutableMapping[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
            return
        if not self.head.done():
            self.head.set_result(_Head(self._status, self._headers))
        if message.get("body"):
            await self._put(message["body"])

    async def _put(self, chunk: bytes) -> None:
        """Wait until there is room, or until nobody reads any more."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._left.is_set() or len(self._chunks) < _CHUNKS_WAITING_MAX
            )
            self._chunks.append(chunk)
            self._changed.notify_all()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._chunks))
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            if chunk == _END:
                return
            yield chunk

    async def aclose(self) -> None:
        async with self._changed:
            self._left.set()
            self._chunks.clear()
            self._changed.notify_all()


def _scope(request: httpx.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": (request.url.host, request.url.port),
        # This process opened the store itself, which is what the Unix socket's owner may do too.
        "kelpie.local": True,
    }
