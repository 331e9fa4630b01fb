"""The load behind the figures: bounded in count and in time, and never over refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from bench.load import LoadError, encode_request, run_load
from tests.integration.host.wire import listen


@asynccontextmanager
async def answering(status: bytes) -> AsyncIterator[int]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\n{}" % status)

    async with listen(talk) as url:
        yield urlsplit(url).port or 0


async def test_a_load_sends_exactly_what_it_was_asked_for() -> None:
    seen: list[int] = []

    def request(client: int, index: int) -> bytes:
        seen.append(index)
        return encode_request("GET", f"/{client}")

    async with answering(b"200 OK") as port:
        load = await run_load(port, request, clients=4, count=50, duration_s_max=20)
    assert sorted(seen) == list(range(50))
    assert load.count == 50
    assert load.percentile(0.5) <= load.percentile(0.99)


async def test_a_load_ends_when_its_time_is_over() -> None:
    async with answering(b"200 OK") as port:
        request = encode_request("GET", "/")
        load = await run_load(
            port, lambda _client, _index: request, clients=2, count=10**9, duration_s_max=0.05
        )
    assert 2 <= load.count < 10**9


async def test_a_refusal_fails_the_load() -> None:
    async with answering(b"503 Busy") as port:
        request = encode_request("GET", "/")
        with pytest.raises(LoadError, match="503"):
            await run_load(
                port, lambda _client, _index: request, clients=2, count=4, duration_s_max=20
            )
