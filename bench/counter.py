"""The actor that every runtime is measured with: it counts."""

from __future__ import annotations

from kelpie import Actor, State, command, query


class Tally(State):
    """What a counter remembers, and as many bytes more as a measurement wants."""

    total: int = 0
    note: bytes = b""


class Counter(Actor[Tally]):
    """Counts."""

    actor_type = "counter"

    @command
    def add(self, amount: int) -> int:
        """Add and return the new total: a turn that changes the state."""
        self.state.total += amount
        return self.state.total

    @command
    def put(self, note: bytes) -> None:
        """Replace the note: a turn that writes a state of any size."""
        self.state.note = note

    @command
    def peek(self) -> int:
        """Return the total: an exclusive turn that changes nothing."""
        return self.state.total

    @query
    def total(self) -> int:
        """Return the total: a read beside the turns."""
        return self.state.total
