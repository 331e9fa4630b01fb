"""A world without sockets for the provider's tests: scripted exchanges and a clock that is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from kelpie.llm.model import ChatMessage, Delta, ModelAnswer, ModelProvider, ModelRequest
from kelpie.llm.providers import WireName
from kelpie.llm.registry import ProviderRegistry, ResolvedProvider
from kelpie.ports.network import HttpRequest, HttpResponse, NetworkError
from kelpie.ports.telemetry import Attribute, Level

KEY = "sk-very-secret-0123456789"
EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """One exchange: what comes back, and how it ends."""

    chunks: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: dict(EVENT_STREAM))
    refuses: bool = False
    breaks: bool = False
    hangs: bool = False
    takes_ms: int = 0


class FakeClock:
    """Time that passes only when somebody sleeps, or an exchange says how long it took."""

    def __init__(self) -> None:
        self.elapsed_ms = 0.0
        self.sleeps: list[float] = []

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self.elapsed_ms)

    def boot_ns(self) -> int:
        return int(self.elapsed_ms * 1_000_000)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.elapsed_ms += seconds * 1000


class FakeRng:
    """Draws that can be foreseen."""

    def __init__(self, fraction: float = 0.5) -> None:
        self._fraction = fraction
        self._count = 0

    def bytes(self, count: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(count, "big")

    def fraction(self) -> float:
        return self._fraction


class FakeTelemetry:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Attribute]]] = []
        self.logs: list[tuple[str, dict[str, Attribute | None]]] = []
        self.counts: list[tuple[str, dict[str, str]]] = []
        self.observations: list[tuple[str, float, dict[str, str]]] = []

    def log(self, level: Level, event: str, **fields: Attribute | None) -> None:
        self.logs.append((event, fields))

    @contextmanager
    def span(self, name: str, **attributes: Attribute) -> Iterator[None]:
        self.spans.append((name, attributes))
        yield

    def traceparent(self) -> str:
        return ""

    def within(self, traceparent: str) -> AbstractContextManager[None]:
        return nullcontext()

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        self.counts.append((name, labels))

    def observe(self, name: str, value: float, **labels: str) -> None:
        self.observations.append((name, value, labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        raise AssertionError("this room has no gauges")


class _Response:
    def __init__(self, script: Scripted) -> None:
        self._script = script
        self.status = script.status
        self.headers = script.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._script.chunks:
            yield chunk
        if self._script.breaks:
            raise NetworkError("the connection was reset", sent=True)
        if self._script.hangs:
            await asyncio.Event().wait()


class FakeNetwork:
    """Plays exchanges in order; knows what was asked, and that every exchange was closed."""

    def __init__(self, *exchanges: Scripted, clock: FakeClock) -> None:
        self._exchanges = list(exchanges)
        self._clock = clock
        self.requests: list[HttpRequest] = []
        self.open_count = 0

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        self.requests.append(request)
        script = self._exchanges.pop(0)
        self._clock.elapsed_ms += script.takes_ms
        if script.refuses:
            raise NetworkError("connection refused", sent=False)
        self.open_count += 1
        try:
            yield _Response(script)
        finally:
            self.open_count -= 1


class World:
    """One provider in a world of its own."""

    def __init__(
        self,
        *exchanges: Scripted,
        wire: WireName = "openai",
        fraction: float = 0.5,
        capture_content: bool = False,
    ) -> None:
        self.clock = FakeClock()
        self.telemetry = FakeTelemetry()
        self.network = FakeNetwork(*exchanges, clock=self.clock)
        settings = ResolvedProvider(
            name=wire, wire=wire, base_url="http://127.0.0.1:9", api_key=KEY
        )
        registry = ProviderRegistry(
            [settings],
            network=self.network,
            clock=self.clock,
            rng=FakeRng(fraction),
            telemetry=self.telemetry,
            capture_content=capture_content,
        )
        self.handle = f"{wire}/test-model"
        self.provider: ModelProvider = registry.resolve(self.handle)

    def request(self, **fields: Any) -> ModelRequest:
        messages = fields.pop("messages", (ChatMessage(role="user", content="Hello"),))
        return ModelRequest(model=self.handle, messages=messages, **fields)

    async def ask(self, **fields: Any) -> tuple[list[Delta], ModelAnswer]:
        """Returns the deltas and the answer, which must be the last item and the only one."""
        items = [item async for item in self.provider.stream(self.request(**fields))]
        *deltas, answer = items
        assert isinstance(answer, ModelAnswer)
        return [delta for delta in deltas if isinstance(delta, Delta)], answer


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Yields `data` cut in two at every position, and once into single bytes."""
    for position in range(len(data) + 1):
        yield [data[:position], data[position:]]
    yield [data[i : i + 1] for i in range(len(data))]


def joined_text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)
