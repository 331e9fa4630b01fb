"""The one place where a test may let real time pass: waiting for another process to get there."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_S = 0.02


def eventually(probe: Callable[[], object], *, within_s: float, what: str) -> None:
    """Returns once `probe` is true.

    Raises:
        AssertionError: if it is still false after `within_s` seconds; the message says `what`.
    """
    ends = time.monotonic() + within_s
    while not probe():
        assert time.monotonic() < ends, f"not within {within_s} s: {what}"
        time.sleep(POLL_S)


async def eventually_async(
    probe: Callable[[], Awaitable[object]], *, within_s: float, what: str
) -> None:
    """Returns once awaiting `probe` gives something true.

    Raises:
        AssertionError: if it is still false after `within_s` seconds; the message says `what`.
    """
    ends = time.monotonic() + within_s
    while not await probe():
        assert time.monotonic() < ends, f"not within {within_s} s: {what}"
        await asyncio.sleep(POLL_S)


async def rest(seconds: float) -> None:
    """Lets a client think before it asks again; nothing may depend on how long that takes."""
    await asyncio.sleep(seconds)
