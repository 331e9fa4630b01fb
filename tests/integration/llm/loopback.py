"""Real sockets for the provider: HTTP/1.1 over loopback, and the scripted model as a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kelpie.llm.model import Delta, ModelAnswer, ModelProvider, ModelRequest
from kelpie.llm.registry import ProviderRegistry, ResolvedProvider
from kelpie.ports.network import HttpRequest, HttpResponse, NetworkError
from tests.unit.llm.worlds import FakeRng, FakeTelemetry

SCRIPTED_MODEL = Path(__file__).parents[3] / "demo" / "scripted_model.py"


@contextmanager
def scripted_model(script: Path | None, *options: str) -> Iterator[str]:
    """Runs the scripted model and yields its base URL."""
    arguments = [sys.executable, str(SCRIPTED_MODEL), *([str(script)] if script else []), *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()
            assert process.wait(10) == 0


class RealClock:
    """The clock of this machine, whose sleeps are recorded and cut to nothing."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def boot_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.sleep(0)


class _Response:
    """A response over a connection of its own, with a chunked or a counted body."""

    def __init__(self, reader: asyncio.StreamReader, head: str) -> None:
        self._reader = reader
        status_line, *lines = head.split("\r\n")
        self.status = int(status_line.split(" ")[1])
        pairs = (line.partition(":") for line in lines if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            if "content-length" in self.headers:
                yield await self._reader.readexactly(int(self.headers["content-length"]))
                return
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
        except (EOFError, OSError) as error:
            raise NetworkError("the connection broke off", sent=True) from error


class LoopbackNetwork:
    """The network port in its smallest form: one connection for each exchange, plain HTTP/1.1."""

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        url = urlsplit(request.url)
        try:
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
        except OSError as error:
            raise NetworkError(str(error), sent=False) from error
        try:
            fields = {**request.headers, "host": url.netloc, "content-length": len(request.body)}
            head = [f"{request.method} {url.path} HTTP/1.1"]
            head += [f"{name}: {value}" for name, value in fields.items()]
            writer.write("\r\n".join([*head, "", ""]).encode() + request.body)
            yield _Response(reader, (await reader.readuntil(b"\r\n\r\n")).decode())
        finally:
            writer.close()


@asynccontextmanager
async def provider_at(url: str) -> AsyncIterator[tuple[ModelProvider, RealClock]]:
    """Yields a provider for the endpoint at `url`, and its clock."""
    clock = RealClock()
    registry = ProviderRegistry(
        [ResolvedProvider(name="vllm", wire="openai", base_url=url)],
        network=LoopbackNetwork(),
        clock=clock,
        rng=FakeRng(),
        telemetry=FakeTelemetry(),
    )
    yield registry.provider("vllm"), clock


async def ask(
    provider: ModelProvider, *messages: Any, **fields: Any
) -> tuple[list[Delta], ModelAnswer]:
    """Returns the deltas and the answer of one call."""
    request = ModelRequest(model="vllm/scripted", messages=messages, **fields)
    items = [item async for item in provider.stream(request)]
    answer = items[-1]
    assert isinstance(answer, ModelAnswer)
    return [item for item in items if isinstance(item, Delta)], answer
