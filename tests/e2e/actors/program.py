"""A program for `kelpie serve`: accounts, and what makes messages fail."""

from __future__ import annotations

from pathlib import Path

from kelpie import Actor, State, command, query, ref, reminder


class Tally(State):
    """What was counted."""

    total: int = 0


class Counter(Actor[Tally]):
    """Counts what it is told, and what reaches it."""

    @query
    def total(self) -> int:
        """Return the sum."""
        return self.state.total

    @command
    def add(self, amount: int) -> int:
        """Add, and return the sum."""
        self.state.total += amount
        return self.state.total

    @command
    def tell(self, other: str, flag: str) -> None:
        """Send another counter a message that it refuses while the flag's file is not there."""
        self.ctx.send(ref(Counter, other).trip, flag)

    @command
    def trip(self, flag: str) -> None:
        """Count, but only with the flag's file."""
        self._require(flag)
        self.state.total += 1

    @command
    def set_alarm(self, flag: str) -> None:
        """Be reminded now, of something that fails while the flag's file is not there."""
        self.ctx.remind("alarm", self.ctx.now_ms, self.ring, flag)

    @reminder
    def ring(self, flag: str) -> None:
        """Count, but only with the flag's file."""
        self._require(flag)
        self.state.total += 1

    def _require(self, flag: str) -> None:
        if not Path(flag).exists():
            raise RuntimeError("the flag is down")
