"""A counter: the smallest actor.

Run it twice; it goes on counting: ``python -m examples.counter``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from kelpie import Actor, Runtime, State, command, query


class Tally(State):
    """What a counter remembers."""

    total: int = 0


class Counter(Actor[Tally]):
    """Counts."""

    @command
    def add(self, amount: int) -> int:
        """Add ``amount`` and return the new total, once it is durable."""
        self.state.total += amount
        return self.state.total

    @query
    def total(self) -> int:
        """Return the total."""
        return self.state.total


async def main(path: Path) -> int:
    """Count one up and return the total."""
    async with Runtime.open(path, actors=[Counter]) as runtime:
        return await runtime.ref(Counter, "visits").add(1)


if __name__ == "__main__":
    print(asyncio.run(main(Path("counter.db"))))
