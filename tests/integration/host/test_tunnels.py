"""TLS, and proxies of the environment: absolute requests for http, a tunnel for https."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kelpie.host.http_connection import Connection
from kelpie.host.http_response import BrokenError
from kelpie.host.http_route import Proxy, parse_url
from kelpie.host.network import HostNetwork
from kelpie.ports.network import NetworkError
from tests.integration.host.wire import Scripted, fetch, get, listen
from tests.system import require_program

COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    openssl = require_program("openssl", package="openssl")
    done = subprocess.run(
        [openssl, *command, "-keyout", key, "-out", certificate], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return certificate, key


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


async def test_tls_connections_are_kept_and_carry_large_bodies(
    secure: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    body = bytes(1_000_000)
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + body
    server = Scripted(COUNTED, large, COUNTED)
    async with listen(server, tls=secure) as url, HostNetwork(tls=trusting) as network:
        assert await fetch(network, get(url)) == b"hi"
        assert await fetch(network, get(url)) == body
        assert await fetch(network, get(url)) == b"hi"
    assert server.connections == 1


async def test_a_certificate_that_the_system_does_not_know_is_refused_before_sending(
    secure: ssl.SSLContext,
) -> None:
    server = Scripted(COUNTED)
    async with listen(server, tls=secure) as url, HostNetwork() as network:
        with pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await fetch(network, get(url))
    assert caught.value.sent is False
    assert server.requests == []


async def test_a_certificate_of_another_name_is_refused_before_sending(
    secure: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    server = Scripted(COUNTED)
    async with listen(server, tls=secure) as url, HostNetwork(tls=trusting) as network:
        with pytest.raises(NetworkError) as caught:
            await fetch(network, get(url.replace("localhost", "127.0.0.1")))
    assert caught.value.sent is False


async def test_a_peer_that_speaks_no_tls_is_an_error_before_sending() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listen(talk) as url, HostNetwork() as network:
        with pytest.raises(NetworkError) as caught:
            await fetch(network, get(url.replace("http://", "https://")))
    assert caught.value.sent is False


@asynccontextmanager
async def tunnel_to(port: int, seen: list[bytes]) -> AsyncIterator[str]:
    """Runs a proxy that leads every tunnel to one port of the loopback."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        there, back = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as group:
            group.create_task(pass_on(reader, back))
            group.create_task(pass_on(there, writer))

    async with listen(talk) as url:
        yield url


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the client closes without a word
    finally:
        writer.close()


async def test_an_https_request_goes_through_a_tunnel_end_to_end(
    secure: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    server, seen = Scripted(COUNTED), list[bytes]()
    async with listen(server, tls=secure) as url:
        route = parse_url(url).route
        async with tunnel_to(route.port, seen) as proxy_url:
            proxy = Proxy(parse_url(proxy_url).route, "Basic eDp5")
            connection = await Connection.dial_through(proxy, route, trusting, idle_s=2.0)
            incoming = connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", has_body=True)
            assert [chunk async for chunk in incoming.chunks(2.0)] == [b"hi"]
            connection.abort()
            await asyncio.sleep(0)
    assert seen == [
        f"CONNECT localhost:{route.port} HTTP/1.1\r\nhost: localhost:{route.port}\r\n"
        "proxy-authorization: Basic eDp5\r\n\r\n".encode()
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\n\r\ninjected",
        b"garbage\r\n",
        b"",
    ],
)
async def test_a_proxy_that_refuses_or_speaks_garbage_is_an_error(
    answer: bytes, trusting: ssl.SSLContext
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with listen(talk) as url:
        proxy = Proxy(parse_url(url).route, "")
        with pytest.raises(BrokenError):
            await Connection.dial_through(
                proxy, parse_url("https://a.example").route, trusting, idle_s=2.0
            )


async def test_an_https_request_through_a_refusing_proxy_was_provably_not_sent() -> None:
    server = Scripted(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
    async with listen(server) as url, HostNetwork(environment={"https_proxy": url}) as network:
        with pytest.raises(NetworkError, match="403") as caught:
            await fetch(network, get("https://a.example/?key=secret"))
    assert caught.value.sent is False
    assert b"secret" not in server.requests[0]


async def test_an_http_request_is_handed_to_the_proxy_whole() -> None:
    server = Scripted(COUNTED)
    async with listen(server) as url:
        proxy = url.replace("http://", "http://x:y@")
        async with HostNetwork(environment={"http_proxy": proxy}) as network:
            assert await fetch(network, get("http://a.example:81/b?c")) == b"hi"
    lines = server.requests[0].split(b"\r\n")
    assert lines[0] == b"GET http://a.example:81/b?c HTTP/1.1"
    assert b"host: a.example:81" in lines
    assert b"proxy-authorization: Basic eDp5" in lines
