"""A program for `kelpie serve`: registers that keep every number they were told, in order."""

from __future__ import annotations

import msgspec

from kelpie import Actor, State, command, query, ref


class Entries(State):
    """What was written, the oldest first."""

    numbers: list[int] = msgspec.field(default_factory=list[int])


class Register(Actor[Entries]):
    """Keeps numbers, and passes some on to another register."""

    @query
    def count(self) -> int:
        """Return how many numbers were written."""
        return len(self.state.numbers)

    @query
    def read(self) -> list[int]:
        """Return all of them in the order in which they were written."""
        return self.state.numbers

    @command
    def write(self, number: int) -> int:
        """Keep a number, and return how many there are."""
        return self._keep(number)

    @command
    def relay(self, number: int, other: str) -> int:
        """Keep a number, send it to another register, and return how many there are here."""
        self.ctx.send(ref(Register, other).write, number)
        return self._keep(number)

    def _keep(self, number: int) -> int:
        self.state.numbers.append(number)
        return len(self.state.numbers)
