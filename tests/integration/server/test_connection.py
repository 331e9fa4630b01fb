"""What leaves on one connection, write by write."""

from __future__ import annotations

import asyncio

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from kelpie.server.connection import BoundedProtocol
from kelpie.server.http import AsgiApp, Event, HeaderPairs, Receive, Scope, Send

GET = b"GET /a%20b?q=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = {"type": "http.response.body", "body": b"hello"}


class RecordedTransport(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        """Everything was read before."""

    def resume_reading(self) -> None:
        """Read on, for ever."""


async def exchange(app: AsgiApp, request: bytes) -> RecordedTransport:
    """Give ``request`` to a connection of its own and return its transport after the answer."""
    state = ServerState()
    protocol = BoundedProtocol(Config(app, ws="none", lifespan="off", log_config=None), state, {})
    transport = RecordedTransport()
    protocol.connection_made(transport)
    protocol.data_received(request)
    while state.tasks:
        await asyncio.wait(state.tasks)
    protocol.connection_lost(ConnectionResetError())
    return transport


def start(*headers: tuple[bytes, bytes]) -> Event:
    pairs: HeaderPairs = list(headers)
    return {"type": "http.response.start", "status": 200, "headers": pairs}


async def answer_whole(scope: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "http.request"
    assert (scope["path"], scope["raw_path"]) == ("/a b", b"/a%20b")
    await send(start((b"content-length", b"5")))
    await send(BODY)


async def test_a_whole_answer_leaves_in_one_write() -> None:
    transport = await exchange(answer_whole, GET)
    (written,) = transport.writes
    assert written.startswith(b"HTTP/1.1 200 OK\r\n")
    assert written.endswith(b"content-length: 5\r\n\r\nhello")
    assert not transport.is_closed


async def test_a_caller_who_wants_no_more_is_told_so_and_let_go() -> None:
    transport = await exchange(
        answer_whole, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    assert b"\r\nconnection: close\r\n" in transport.writes[0]
    assert transport.is_closed


async def test_an_answer_to_head_has_a_length_and_no_body() -> None:
    transport = await exchange(answer_whole, GET.replace(b"GET", b"HEAD"))
    assert b"".join(transport.writes).endswith(b"content-length: 5\r\n\r\n")


async def test_the_head_of_a_stream_does_not_wait() -> None:
    seen: list[int] = []
    transports: list[RecordedTransport] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send(start((b"content-type", b"text/event-stream")))
        seen.append(1)
        await send({**BODY, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    transports.append(await exchange(stream, GET))
    assert seen == [1]
    assert transports[0].writes[0].endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert transports[0].writes[1:] == [b"5\r\nhello\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"4")],
        [(b"content-length", b"5"), (b"x-request-id", b"a\r\nset-cookie: b")],
    ],
)
async def test_half_an_answer_never_leaves(headers: HeaderPairs) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send(start(*headers))
        await send(BODY)

    transport = await exchange(fail, GET)
    (written,) = transport.writes
    assert written.startswith(b"HTTP/1.1 500 ")
    assert b"set-cookie" not in written


async def test_a_head_without_a_body_becomes_a_failure() -> None:
    async def forget(scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send(start((b"content-length", b"5")))

    transport = await exchange(forget, GET)
    assert transport.writes[0].startswith(b"HTTP/1.1 500 ")


async def test_requests_sent_at_once_are_answered_in_order() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        body: bytes = scope["raw_path"]
        await send(start((b"content-length", b"%d" % len(body))))
        await send({"type": "http.response.body", "body": body})

    requests = [b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % index for index in range(3)]
    transport = await exchange(echo, b"".join(requests))
    assert [written[-2:] for written in transport.writes] == [b"/0", b"/1", b"/2"]
