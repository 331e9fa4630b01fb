"""When a connection is kept, when it is closed, and when a request may be sent once more."""

from __future__ import annotations

import asyncio

import pytest

from kelpie.host.network import HostNetwork
from kelpie.ports.network import NetworkError
from tests.integration.host.wire import Scripted, fetch, get, listen, post

COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


@pytest.mark.parametrize("response", [COUNTED, CHUNKED, b"HTTP/1.1 204 No Content\r\n\r\n"])
async def test_a_connection_carries_the_next_request_after_a_whole_response(
    response: bytes,
) -> None:
    server = Scripted(response, response, response)
    async with listen(server) as url, HostNetwork() as network:
        for _ in range(3):
            await fetch(network, post(url))
    assert (server.connections, len(server.requests)) == (1, 3)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        COUNTED + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        COUNTED + b"garbage",
    ],
)
async def test_a_connection_whose_state_is_in_doubt_is_not_used_again(response: bytes) -> None:
    server = Scripted(response, COUNTED)
    async with listen(server) as url, HostNetwork() as network:
        assert await fetch(network, post(url)) == b"hi"
        assert await fetch(network, post(url)) == b"hi"
    assert server.connections == 2


async def test_what_comes_between_two_exchanges_never_reaches_the_second() -> None:
    spoke = asyncio.Event()
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(COUNTED)
        if connections == 1:
            await reader.read(2)  # the body of the request
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
            await writer.drain()
            spoke.set()
            await reader.read()

    async with listen(talk) as url, HostNetwork() as network:
        assert await fetch(network, post(url)) == b"hi"
        await spoke.wait()
        assert await fetch(network, post(url)) == b"hi"
    assert connections == 2


async def test_an_exchange_that_is_left_early_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
        try:
            await reader.read()
        finally:
            closed.set()

    async with listen(talk) as url, HostNetwork() as network:
        async with network.exchange(get(url)) as response:
            assert await anext(response.chunks()) == b"some"
            chunks = response.chunks()
        await closed.wait()
        with pytest.raises(NetworkError, match="left"):
            await anext(chunks)


async def test_a_cancelled_exchange_closes_its_connection() -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        try:
            await reader.read()
        finally:
            closed.set()

    async with listen(talk) as url, HostNetwork() as network, asyncio.TaskGroup() as group:
        task = group.create_task(fetch(network, get(url)))
        await asked.wait()
        task.cancel()
        await closed.wait()
    assert task.cancelled()


async def test_closing_the_network_fails_what_is_in_flight_and_refuses_more() -> None:
    asked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with listen(talk) as url:
        network = HostNetwork()

        async def try_it() -> NetworkError:
            with pytest.raises(NetworkError) as caught:
                await fetch(network, get(url))
            return caught.value

        async with asyncio.TaskGroup() as group:
            running = group.create_task(try_it())
            await asked.wait()
            await network.close()
        assert running.result().sent is True
        assert (await try_it()).sent is False


async def test_a_post_that_meets_a_closing_connection_is_not_repeated() -> None:
    server = Scripted(COUNTED, b"", COUNTED)
    async with listen(server) as url, HostNetwork() as network:
        await fetch(network, post(url))
        with pytest.raises(NetworkError) as caught:
            await fetch(network, post(url))
        assert caught.value.sent is True
    assert len(server.requests) == 2


async def test_a_get_that_meets_a_closing_connection_is_sent_once_more() -> None:
    server = Scripted(COUNTED, b"", COUNTED)
    async with listen(server) as url, HostNetwork() as network:
        await fetch(network, get(url))
        assert await fetch(network, get(url)) == b"hi"
    assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_get_on_a_fresh_connection_is_not_repeated() -> None:
    server = Scripted(b"", COUNTED)
    async with listen(server) as url, HostNetwork() as network:
        with pytest.raises(NetworkError) as caught:
            await fetch(network, get(url))
    assert caught.value.sent is True
    assert len(server.requests) == 1


async def test_a_silent_kept_connection_times_out_without_a_second_request() -> None:
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        writer.write(COUNTED)
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        await reader.read()

    async with listen(talk) as url, HostNetwork() as network:
        await fetch(network, get(url))
        with pytest.raises(NetworkError, match="nothing came"):
            await fetch(network, get(url, idle_timeout_ms=50))
    assert asked == 1


async def test_exchanges_at_once_have_connections_of_their_own() -> None:
    arrived: list[asyncio.Event] = []
    all_here = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.append(asyncio.Event())
        if len(arrived) == 8:
            all_here.set()
        await all_here.wait()
        writer.write(COUNTED)

    async with listen(talk) as url, HostNetwork() as network, asyncio.TaskGroup() as group:
        tasks = [group.create_task(fetch(network, get(url))) for _ in range(8)]
    assert [task.result() for task in tasks] == [b"hi"] * 8


async def test_a_large_body_is_sent_and_received_whole() -> None:
    body = bytes(range(256)) * 16_384
    received = bytearray()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.extend(await reader.readexactly(len(body)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()

    async with listen(talk) as url, HostNetwork() as network:
        assert await fetch(network, post(url, body)) == body
    assert bytes(received) == body


async def test_a_body_that_nobody_takes_stops_the_peer() -> None:
    chunk = bytes(65_536)
    blocked = asyncio.Event()
    written = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            writer.write(chunk)
            try:
                async with asyncio.timeout(0.2):
                    await writer.drain()
            except TimeoutError:
                blocked.set()
                return
            written += len(chunk)

    async with (
        listen(talk) as url,
        HostNetwork() as network,
        network.exchange(get(url)) as response,
    ):
        assert response.status == 200
        await blocked.wait()
    assert written < 100_000_000, "the kernel's buffers and one of ours, not the whole body"
