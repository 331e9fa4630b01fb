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


async def exchange(app: AsgiApp, request: bytes, *, size: int = 1 << 20) -> RecordedTransport:
    """Give ``request`` to a connection of its own and return its transport after the answer.

    It arrives in pieces of ``size`` bytes.
    """
    state = ServerState()
    protocol = BoundedProtocol(Config(app, ws="none", lifespan="off", log_config=None), state, {})
    transport = RecordedTransport()
    protocol.connection_made(transport)
    for begin in range(0, len(request), size):
        protocol.data_received(request[begin : begin + size])
    if transport.is_closed:
        protocol.connection_lost(None)
    while state.tasks:
        await asyncio.wait(state.tasks)
    if protocol in state.connections:
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


async def echo_body(scope: Scope, receive: Receive, send: Send) -> None:
    body: bytes = scope["raw_path"]
    is_whole = False
    while not is_whole:
        event = await receive()
        body += event.get("body", b"")
        is_whole = not event.get("more_body")
    await send(start((b"content-length", b"%d" % len(body))))
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("length", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("pieces", [1, 2, 1000])
async def test_a_request_that_asks_for_another_protocol_keeps_its_body(
    length: bytes, pieces: int
) -> None:
    body = b"hello" if length.endswith(b"5") else b"5\r\nhello\r\n0\r\n\r\n"
    head = b"POST /a HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    request = head + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n" + length + b"\r\n\r\n" + body
    following = b"GET /b HTTP/1.1\r\nHost: localhost\r\n\r\n"
    transport = await exchange(echo_body, request + following, size=-(-len(request) // pieces))
    assert [written.partition(b"\r\n\r\n")[2] for written in transport.writes] == [
        b"/ahello",
        b"/b",
    ]
    assert all(written.startswith(b"HTTP/1.1 200 ") for written in transport.writes)


@pytest.mark.parametrize("bad", [b"NONSENSE\r\n\r\n", b"GET /c HTTP/1.1\r\nX: " + b"x" * 200_000])
async def test_what_is_no_request_is_not_the_answer_to_the_one_before_it(bad: bytes) -> None:
    requests = [b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % name for name in (b"a", b"b")]
    transport = await exchange(echo_body, b"".join(requests) + bad, size=40_000)
    assert [written[-2:] for written in transport.writes] == [b"/a", b"/b"]
    assert transport.is_closed
    alone = await exchange(echo_body, bad, size=40_000)
    assert alone.writes[0].startswith(b"HTTP/1.1 4")
    assert alone.is_closed


@pytest.mark.parametrize("where", [b"X: ", b"X", b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "])
async def test_a_header_without_an_end_is_refused_at_the_bound(where: bytes) -> None:
    endless = b"POST /c HTTP/1.1\r\n" + where + b"x" * 200_000
    transport = await exchange(echo_body, endless, size=1_000)
    (written,) = transport.writes
    assert written.startswith(b"HTTP/1.1 431 ")
    assert transport.is_closed


async def test_a_long_body_is_no_long_head() -> None:
    head = b"POST /c HTTP/1.1\r\nContent-Length: 200000\r\n\r\n"
    transport = await exchange(echo_body, head + b"x" * 200_000, size=1_000)
    assert transport.writes[0].startswith(b"HTTP/1.1 200 ")
    assert not transport.is_closed
