"""Servers on the loopback that write chosen bytes, and requests to them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kelpie.ports.network import HttpRequest, Network

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listen(
    talk: Talk, *, path: Path | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Runs `talk` for every connection; yields the URL."""
    ended: list[asyncio.Event] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.Event()
        ended.append(done)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left, which some tests are about
        finally:
            writer.close()
            done.set()

    if path:
        server = await asyncio.start_unix_server(answer, path)
        url = "http://holder"
    else:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        url = f"{scheme}://{host}:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield url
        for done in ended:
            await done.wait()
    for _ in range(3):  # a handshake that failed ends in the loop's own task, some turns later
        await asyncio.sleep(0)


@asynccontextmanager
async def serve(handler: Handler, *, path: Path | None = None) -> AsyncIterator[str]:
    """Runs one handler per connection, with the request's head read."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handler(await reader.readuntil(b"\r\n\r\n"), writer)

    async with listen(talk, path=path) as url:
        yield url


class Scripted:
    """Answers every request with the next of its responses; counts connections and requests."""

    def __init__(self, *responses: bytes) -> None:
        self.responses = list(responses)
        self.connections = 0
        self.requests: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            self.requests.append(head + await reader.readexactly(length))
            response = self.responses.pop(0)
            if not response:
                return
            writer.write(response)
            await writer.drain()


def get(url: str, *, idle_timeout_ms: int = 2_000) -> HttpRequest:
    return HttpRequest(
        method="GET",
        url=url,
        headers={"X-Key": "k"},
        connect_timeout_ms=2_000,
        idle_timeout_ms=idle_timeout_ms,
    )


def post(url: str, body: bytes = b"{}", *, idle_timeout_ms: int = 2_000) -> HttpRequest:
    return HttpRequest(
        method="POST",
        url=url,
        body=body,
        connect_timeout_ms=2_000,
        idle_timeout_ms=idle_timeout_ms,
    )


async def fetch(network: Network, request: HttpRequest) -> bytes:
    """Returns the whole body."""
    async with network.exchange(request) as response:
        return b"".join([chunk async for chunk in response.chunks()])
