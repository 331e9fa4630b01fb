"""A token bucket per key: a million keys need no memory while nobody asks for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kelpie import Actor, Runtime, State, command

TOKENS_MAX = 5
TOKENS_PER_SECOND = 1.0


class Bucket(State):
    """How many tokens there were, and when that was."""

    tokens: float = float(TOKENS_MAX)
    at_ms: int = 0


class Limiter(Actor[Bucket]):
    """Lets ``TOKENS_MAX`` requests through at once, and ``TOKENS_PER_SECOND`` in the long run."""

    @command
    def take(self, count: int = 1) -> int:
        """Take tokens and return 0, or return how many milliseconds to wait for them."""
        passed_ms = max(0, self.ctx.now_ms - self.state.at_ms) if self.state.at_ms else 0
        grown = self.state.tokens + passed_ms / 1000 * TOKENS_PER_SECOND
        self.state.tokens = min(float(TOKENS_MAX), grown)
        self.state.at_ms = self.ctx.now_ms
        if self.state.tokens >= count:
            self.state.tokens -= count
            return 0
        return int((count - self.state.tokens) / TOKENS_PER_SECOND * 1000) + 1


async def main(path: Path) -> list[int]:
    """Ask eight times at once; return what each was told."""
    async with Runtime.open(path, actors=[Limiter]) as runtime:
        return [await runtime.ref(Limiter, "client-1").take() for _ in range(TOKENS_MAX + 3)]


if __name__ == "__main__":
    print(asyncio.run(main(Path("limiter.db"))))
