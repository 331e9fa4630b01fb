"""The network port against servers on the loopback that write chosen bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kelpie.core.errors import InvalidFieldError
from kelpie.host.network import HostNetwork
from kelpie.ports.network import NetworkError
from tests.integration.host.wire import get, serve


async def test_a_response_is_streamed_as_it_arrives() -> None:
    proceed = asyncio.Event()

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        assert b"x-key: k" in head.lower()
        writer.write(b"HTTP/1.1 200 OK\r\nX-Thing: A\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"3\r\none\r\n")
        await proceed.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with (
        serve(handler) as url,
        HostNetwork() as network,
        network.exchange(get(url)) as response,
    ):
        assert (response.status, response.headers["x-thing"]) == (200, "A")
        chunks = response.chunks()
        assert await anext(chunks) == b"one"
        proceed.set()
        assert [chunk async for chunk in chunks] == [b"two"]


async def test_an_error_status_is_a_response_and_a_redirect_is_not_followed() -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n")

    async with (
        serve(handler) as url,
        HostNetwork() as network,
        network.exchange(get(url)) as response,
    ):
        assert response.status == 302


async def test_a_refused_connection_was_provably_not_sent() -> None:
    async with HostNetwork() as network:
        with pytest.raises(NetworkError) as caught:
            async with network.exchange(get("http://127.0.0.1:1/?key=secret")):
                raise AssertionError("nobody answers there")
    assert caught.value.sent is False
    assert caught.value.retriable
    assert "secret" not in caught.value.message


async def test_a_connection_that_breaks_before_the_head_may_have_been_sent() -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serve(handler) as url, HostNetwork() as network:
        with pytest.raises(NetworkError) as caught:
            async with network.exchange(get(url)):
                raise AssertionError("no head arrives")
    assert caught.value.sent is True


async def test_a_body_that_breaks_off_is_an_error() -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort")

    async with serve(handler) as url, HostNetwork() as network:
        with pytest.raises(NetworkError) as caught:
            async with network.exchange(get(url)) as response:
                assert [chunk async for chunk in response.chunks()]
    assert caught.value.sent is True


async def test_a_silent_server_is_given_up_after_the_idle_timeout() -> None:
    release = asyncio.Event()

    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        await release.wait()

    async with serve(handler) as url, HostNetwork() as network:
        with pytest.raises(NetworkError, match="nothing came") as caught:
            async with network.exchange(get(url, idle_timeout_ms=50)):
                raise AssertionError("no head arrives")
        release.set()
    assert caught.value.sent is True


async def test_a_proxy_of_the_environment_never_sees_the_loopback() -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with (
        serve(handler) as url,
        HostNetwork(environment={"HTTP_PROXY": "http://127.0.0.1:1"}) as network,
        network.exchange(get(url)) as response,
    ):
        assert response.status == 204


async def test_a_unix_socket_can_stand_in_for_every_host(tmp_path: Path) -> None:
    async def handler(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    path = tmp_path / "socket"
    async with (
        serve(handler, path=path) as url,
        HostNetwork(unix_socket=path) as network,
        network.exchange(get(url)) as response,
    ):
        assert b"".join([chunk async for chunk in response.chunks()]) == b"hi"


async def test_a_malformed_url_names_its_field() -> None:
    async with HostNetwork() as network:
        with pytest.raises(InvalidFieldError, match="url"):
            async with network.exchange(get("http://[::1")):
                raise AssertionError("it cannot be parsed")
