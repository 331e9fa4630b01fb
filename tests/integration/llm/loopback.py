"""Real sockets for the provider: HTTP/1.1 over loopback, and the scripted model as a process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from kelpie.llm.model import Delta, ModelAnswer, ModelProvider, ModelRequest
from kelpie.llm.registry import ProviderRegistry, ProviderSettings
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
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.TransportError as error:
            raise NetworkError(str(error), sent=True) from error


class LoopbackNetwork:
    """The network port over httpx; for these tests only."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        wire = self._client.build_request(
            request.method, request.url, headers=dict(request.headers), content=request.body
        )
        try:
            response = await self._client.send(wire, stream=True)
        except httpx.TransportError as error:
            raise NetworkError(str(error), sent=False) from error
        try:
            yield _Response(response)
        finally:
            await response.aclose()


@asynccontextmanager
async def provider_at(url: str) -> AsyncIterator[tuple[ModelProvider, RealClock]]:
    """Yields a provider for the endpoint at `url`, and its clock."""
    clock = RealClock()
    async with httpx.AsyncClient(trust_env=False) as client:
        registry = ProviderRegistry(
            [ProviderSettings(name="vllm", wire="openai", base_url=url)],
            network=LoopbackNetwork(client),
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
