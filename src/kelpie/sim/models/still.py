"""A world in which nothing happens by itself: what models run shipped code in between two steps."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, TypeVar

from kelpie.core.digests import digest_bytes
from kelpie.ports.telemetry import Attribute, Level

T = TypeVar("T")

NOW_MS: Final = 1_000


class StillClock:
    """A clock that stands still, and on which nobody may wait."""

    def now_ms(self) -> int:
        """Return the one moment there is."""
        return NOW_MS

    def boot_ns(self) -> int:
        """Return the same moment."""
        return NOW_MS * 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Fail: a model has no time to wait."""
        raise AssertionError(f"somebody waits {seconds} s where time stands still")


class StillRng:
    """Randomness that is the same every time."""

    def bytes(self, count: int) -> bytes:
        """Return ``count`` bytes that depend on nothing else."""
        data = digest_bytes(str(count).encode()).encode()
        return (data * (count // len(data) + 1))[:count]

    def fraction(self) -> float:
        """Return a half."""
        return 0.5


class FailureReports:
    """Telemetry that keeps what somebody reported as failed, and nothing else."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def log(self, level: Level, event: str, **fields: Attribute | None) -> None:
        """Keep errors."""
        assert event, "a record has a name"
        if level == "error":
            self.failures.append(f"{event}: {fields.get('error', '')}")
        assert level != "error" or self.failures, "an error is kept"

    @contextmanager
    def span(self, name: str, **attributes: Attribute) -> Generator[None]:
        """Run what is inside."""
        del name, attributes
        yield

    def traceparent(self) -> str:
        """Return nothing: nobody follows spans here."""
        return ""

    def within(self, traceparent: str) -> AbstractContextManager[None]:
        """Run the enclosed work."""
        del traceparent
        return nullcontext()

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Keep nothing."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Keep nothing."""

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Keep nothing."""


def run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine comes to that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("a read of a small actor waited")
