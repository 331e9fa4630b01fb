"""The smallest actor class: no hooks, one number."""

from __future__ import annotations

from kelpie import Actor, State, command, query


class Tally(State):
    total: int = 0


class Plain(Actor[Tally]):
    """One number."""

    @command
    def add(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total

    @query
    def total(self) -> int:
        return self.state.total
