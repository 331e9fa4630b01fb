"""Requests in and responses out, over ASGI's three callables.

Owns reading a bounded body, writing a response, and noticing a caller who has left. Must never
decide anything about what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

from kelpie.core.errors import KelpieError

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
HeaderPairs = list[tuple[bytes, bytes]]
T = TypeVar("T")

JSON: Final = b"application/json"
EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"

_ONE_LINE: Final = {0: " ", 10: " ", 13: " "}  # what ends a line, or is ignored, in an event stream
_HEADERS: Final = "kelpie.headers"  # in the scope: headers by name, for a request asks often

_encode: Final = msgspec.json.Encoder().encode


class CallerLeftError(Exception):
    """The caller closed the connection; there is nobody to answer."""


@dataclass(slots=True, kw_only=True)
class Response:
    """A response that is complete when it leaves."""

    body: bytes
    status: int = 200
    media: bytes = JSON
    headers: HeaderPairs = field(default_factory=list[tuple[bytes, bytes]])


@dataclass(slots=True, kw_only=True)
class Stream:
    """Server-sent events: each chunk leaves as it is yielded.

    The generator is closed when the caller leaves; what it reports on goes on without it.
    """

    chunks: AsyncGenerator[bytes, None]
    headers: HeaderPairs = field(default_factory=list[tuple[bytes, bytes]])


def json_response(value: object, status: int = 200) -> Response:
    """Return ``value`` as a JSON response."""
    return Response(body=_encode(value), status=status)


def encode_event(value: object, *, kind: str = "", cursor: int | None = None) -> bytes:
    """Return one server-sent event that carries ``value`` as JSON.

    A ``kind`` is an actor's own text: a line of it must not pass for a line of the stream.
    """
    head = b""
    if cursor is not None:
        head += b"id: %d\n" % cursor
    if kind:
        head += b"event: " + kind.translate(_ONE_LINE).encode() + b"\n"
    return head + b"data: " + _encode(value) + b"\n\n"


async def read_body(scope: Scope, receive: Receive, size_bytes_max: int) -> bytes | None:
    """Return the whole body, or None when it is larger than allowed.

    A body that announces too much is refused before a byte of it is read; one that lies is refused
    as soon as it has sent too much.

    Raises:
        CallerLeftError: The caller went away before the end.
    """
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > size_bytes_max:
        return None
    event = await receive()
    chunk: bytes = event.get("body", b"")
    if event["type"] == "http.request" and not event.get("more_body"):
        return chunk if len(chunk) <= size_bytes_max else None
    chunks = [chunk]
    size = len(chunk)
    while event["type"] == "http.request" and event.get("more_body"):
        if size > size_bytes_max:
            return None
        event = await receive()
        chunk = event.get("body", b"")
        size += len(chunk)
        chunks.append(chunk)
    if event["type"] != "http.request":
        raise CallerLeftError
    return b"".join(chunks) if size <= size_bytes_max else None


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of that lower-case name."""
    found: dict[bytes, bytes] | None = scope.get(_HEADERS)
    if found is None:
        found = scope[_HEADERS] = dict(reversed(scope["headers"]))
    return found.get(name)


async def send_response(send: Send, response: Response, *, with_body: bool = True) -> None:
    """Send a complete response; ``with_body`` False answers HEAD."""
    headers = [
        (b"content-type", response.media),
        (b"content-length", b"%d" % len(response.body)),
        *response.headers,
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body if with_body else b""})


async def send_stream(send: Send, receive: Receive, stream: Stream) -> None:
    """Send events until the stream ends or the caller leaves; the generator is closed either way.

    Backpressure is the transport's: a chunk is asked for when the last one was taken.
    """
    headers = [
        (b"content-type", EVENT_STREAM),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        *stream.headers,
    ]

    async def pump() -> None:
        async with aclosing(stream.chunks) as chunks:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    await while_connected(receive, pump())


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` returns, unless the caller leaves first; then ``work`` is cancelled.

    Raises:
        CallerLeftError: The caller left.
        KelpieError: ``work`` raised it.
    """
    results: list[T] = []
    errors: list[KelpieError] = []

    async def run() -> None:
        try:
            results.append(await work)
        except KelpieError as error:
            errors.append(error)

    async def listen(worker: asyncio.Task[None]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        worker.cancel()

    async with asyncio.TaskGroup() as group:
        worker = group.create_task(run())
        listener = group.create_task(listen(worker))
        worker.add_done_callback(lambda _: listener.cancel())
    if errors:
        raise errors[0]
    if not results:
        raise CallerLeftError
    return results[0]
