"""Peers that trickle, flood, lie and break off: a bounded error, never a hang or a wrong body."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from kelpie.core.errors import InvalidFieldError
from kelpie.host.network import HostNetwork
from kelpie.ports.network import HttpRequest, NetworkError
from tests.integration.host.wire import fetch, get, listen, post, serve

OK = b"HTTP/1.1 200 OK\r\n"


def serve_until_left(flood: bytes) -> AbstractAsyncContextManager[str]:
    """Answers with these bytes, and stays until the client has left."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(flood)
        await writer.drain()
        await reader.read()

    return listen(talk)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"\x16\x03\x01\x00\xff\xff\xff",
        OK + b"no colon here\r\n\r\n",
        OK + b"content-length: minus\r\n\r\n",
        OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabcdef\r\n",
        OK + b"content-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nraw",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"",
    ],
)
async def test_garbage_is_a_typed_error(answer: bytes) -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with serve(handler) as url, HostNetwork() as network:
        with pytest.raises(NetworkError) as caught:
            await fetch(network, get(url))
    assert caught.value.sent is True


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length: 5\r\n\r\nhello",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nx-sum: 1\r\n\r\n",
        OK + b"\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
        + OK
        + b"content-length: 5\r\n\r\nhello",
    ],
)
async def test_a_trickle_of_single_bytes_gives_the_same_body(answer: bytes) -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        for index in range(len(answer)):
            writer.write(answer[index : index + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with serve(handler) as url, HostNetwork() as network:
        assert await fetch(network, get(url)) == b"hello"


@pytest.mark.parametrize(
    "flood",
    [
        OK + b"x-long: " + b"a" * 2_000_000,
        OK + b"x-many: 1\r\n" * 100_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000,
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x-trailer: 1\r\n" * 100_000,
        OK + b"transfer-encoding: chunked\r\n\r\n5;" + b"e" * 2_000_000,
    ],
)
async def test_a_flood_without_a_body_ends_at_a_bound(flood: bytes) -> None:
    async with serve_until_left(flood) as url, HostNetwork() as network:
        with pytest.raises(NetworkError, match=r"65,536 bytes|not HTTP"):
            await fetch(network, get(url))


async def test_a_stalled_body_is_given_up_after_the_idle_timeout() -> None:
    async with (
        serve_until_left(OK + b"content-length: 9\r\n\r\nsome") as url,
        HostNetwork() as network,
    ):
        with pytest.raises(NetworkError, match="nothing came"):
            await fetch(network, get(url, idle_timeout_ms=50))


async def test_a_peer_that_takes_no_body_is_given_up_after_the_idle_timeout() -> None:
    release = asyncio.Event()

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        await release.wait()

    async with serve(handler) as url, HostNetwork() as network:
        with pytest.raises(NetworkError, match="nothing came") as caught:
            await fetch(network, post(url, bytes(64_000_000), idle_timeout_ms=200))
        release.set()
    assert caught.value.sent is True


async def test_a_peer_that_ends_its_half_after_the_response_has_answered() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"\r\nhello")
        writer.write_eof()
        await reader.read()

    async with listen(talk) as url, HostNetwork() as network:
        assert await fetch(network, get(url)) == b"hello"


async def test_a_peer_that_ends_its_half_inside_the_body_has_not_answered() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhel")
        writer.write_eof()
        await reader.read()

    async with listen(talk) as url, HostNetwork() as network:
        with pytest.raises(NetworkError, match="closed before"):
            await fetch(network, get(url))


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"x-key": "a\r\nx-forged: b"}),
        ("GET", {"x-key": "a\nb"}),
        ("GET", {"x key": "a"}),
        ("GET", {"x-key": "€"}),
        ("GET /\r\n", {}),
    ],
)
async def test_what_would_break_the_request_apart_is_refused(
    method: str, headers: dict[str, str]
) -> None:
    request = HttpRequest(
        method=method,
        url="http://127.0.0.1:1/",
        headers=headers,
        connect_timeout_ms=100,
        idle_timeout_ms=100,
    )
    async with HostNetwork() as network:
        with pytest.raises(InvalidFieldError):
            await fetch(network, request)


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/", "http:///x", "/v1", "http://127.0.0.1:99999/", f"http://{'a' * 64}.b/"],
)
async def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    async with HostNetwork() as network:
        with pytest.raises(InvalidFieldError, match="url"):
            await fetch(network, get(url))


async def test_a_target_is_sent_as_one_token() -> None:
    seen: list[bytes] = []

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(head.partition(b"\r\n")[0])
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with serve(handler) as url, HostNetwork() as network:
        await fetch(network, get(f"{url}/a b/ü%20?q=x y#part"))
    assert seen == [b"GET /a%20b/%C3%BC%20?q=x%20y HTTP/1.1"]
