"""Work that a drain waits for, counted: turns that began and whose answers have not left.

Owns a number and whoever waits for it to come to nothing. Invariant: what ended had begun.
"""

from __future__ import annotations

import asyncio


class OpenWork:
    """How much of the actors' work is on its way."""

    __slots__ = ("_count", "_rest")

    def __init__(self) -> None:
        self._count = 0
        self._rest: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Count work that a drain must wait for."""
        assert self._count >= 0
        self._count += 1
        assert self._count > 0

    def end(self) -> None:
        """Count such work as done."""
        assert self._count > 0, "nothing is unsettled"
        self._count -= 1
        assert self._count >= 0, "settled more turns than ran"
        if self._count == 0 and self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    async def settled(self) -> None:
        """Return when nothing is on its way."""
        assert self._rest is None or self._rest.done(), "two drains at once"
        while self._count:
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest
        assert self._count == 0, "a turn is unsettled after draining"

    def check_invariants(self) -> None:
        """Assert what holds between turns."""
        assert self._count >= 0
