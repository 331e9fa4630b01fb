"""Load over HTTP/1.1 on asyncio transports: a client that costs far less than what it measures.

One keep-alive connection per client, one request at a time on each. Bounded in count and in time;
an answer other than 2xx ends the load, because a figure over refusals measures nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import httptools


class LoadError(Exception):
    """A request was refused, or its connection broke."""


class Answer(NamedTuple):
    """One complete response."""

    status: int
    body: bytes

    def read_json(self) -> Any:
        """Return the body of a success as JSON.

        Raises:
            LoadError: The status is no success.
        """
        if self.status // 100 != 2:
            raise LoadError(f"{self.status}: {self.body[:500].decode(errors='replace')}")
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a load came to."""

    latencies_ms: list[float]
    elapsed_s: float

    @property
    def count(self) -> int:
        """How many requests were answered."""
        return len(self.latencies_ms)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.count / self.elapsed_s

    def percentile(self, share: float) -> float:
        """Return the latency in ms that ``share`` (0 to 1) of the answers did not exceed."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client(asyncio.Protocol):
    """One connection; connect with `connect`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body: list[bytes] = []
        self._answer: asyncio.Future[Answer] | None = None
        self._is_lost = False

    @classmethod
    async def connect(cls, port: int) -> Client:
        """Return a client connected to the loopback's ``port``."""
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, "127.0.0.1", port)
        return client

    async def ask(self, request: bytes) -> Answer:
        """Send one encoded request and return its whole answer.

        Raises:
            LoadError: The connection broke.
        """
        assert self._transport is not None
        assert self._answer is None, "one request at a time"
        if self._is_lost:
            raise LoadError("the connection broke")
        self._parser = httptools.HttpResponseParser(self)
        self._body.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits, and those to come."""
        self._is_lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LoadError(f"the connection broke: {exc}"))

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        if self._answer is not None and not self._answer.done():
            status = int(self._parser.get_status_code())
            self._answer.set_result(Answer(status, b"".join(self._body)))


def encode_request(method: str, path: str, body: object = None, *, key: str | None = None) -> bytes:
    """Return an HTTP/1.1 request with a JSON body, ready to be written."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n"
    if data:
        head += "content-type: application/json\r\n"
    if key is not None:
        head += f"idempotency-key: {key}\r\n"
    return head.encode() + b"\r\n" + data


async def ask_once(port: int, method: str, path: str, body: object = None) -> Any:
    """Send one request on a connection of its own and return the JSON of its answer.

    Raises:
        LoadError: The answer is no success.
    """
    client = await Client.connect(port)
    try:
        answer = await client.ask(encode_request(method, path, body))
    finally:
        client.close()
    return answer.read_json()


async def run_load(
    port: int,
    make_request: Callable[[int, int], bytes],
    *,
    clients: int,
    count: int,
    duration_s_max: float,
) -> Load:
    """Send up to ``count`` requests from ``clients`` connections, for at most so long.

    ``make_request`` gets the client's index and the request's, both from 0.

    Raises:
        LoadError: A client met a refusal or a broken connection.
    """
    assert clients >= 1
    assert count >= clients
    connections = [await Client.connect(port) for _ in range(clients)]
    latencies_ms: list[float] = []
    indices = iter(range(count))
    began = time.perf_counter()
    ends = began + duration_s_max

    async def drive(client: int) -> None:
        for index in indices:
            request = make_request(client, index)
            sent = time.perf_counter()
            answer = await connections[client].ask(request)
            now = time.perf_counter()
            if answer.status // 100 != 2:
                answer.read_json()
            latencies_ms.append((now - sent) * 1_000)
            if now > ends:
                return

    try:
        async with asyncio.TaskGroup() as group:
            for client in range(clients):
                group.create_task(drive(client))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    else:
        elapsed_s = time.perf_counter() - began
        return Load(latencies_ms=latencies_ms, elapsed_s=elapsed_s)
    finally:
        for connection in connections:
            connection.close()
