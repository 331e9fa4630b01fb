"""Incarnations: one life of one program on a simulated machine, and what belongs to it.

A context variable tags every callback with the incarnation that caused it. What belongs to none is
the world: clients, people, models, the network.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from kelpie.sim.clock import MachineClock

_BIRTHS_MIN: Final = 4_096


class Incarnation:
    """One life of one program. Made for each start; never used again after its death.

    Attributes:
        name: The machine's name.
        number: Which life of it, from 1.
        clock: The machine's clocks.
        blocked: Whether its callbacks may not run: it is paused or dead.
        dead: Whether it is over.
        held: Callbacks that wait for the end of a pause, in order.
        births: Its tasks by order of birth; ended ones leave now and then.
    """

    __slots__ = ("_births_max", "births", "blocked", "clock", "dead", "held", "name", "number")

    def __init__(self, name: str, number: int, clock: MachineClock) -> None:
        assert name, "an incarnation has a name"
        assert number >= 1, "lives are counted from one"
        self.name = name
        self.number = number
        self.clock = clock
        self.blocked = False
        self.dead = False
        self.held: list[asyncio.Handle] = []
        self.births: dict[asyncio.Task[Any], None] = {}
        self._births_max = _BIRTHS_MIN

    def __repr__(self) -> str:
        return f"{self.name}.{self.number}"

    def context(self) -> Context:
        """Return a copy of the current context that belongs to this incarnation."""
        context = copy_context()
        context.run(INCARNATION.set, self)
        return context

    def note_birth(self, task: asyncio.Task[Any]) -> None:
        """Remember a task; harmless when it is known."""
        assert not self.dead, "the dead have no children"
        self.births[task] = None
        if len(self.births) > self._births_max:
            self.births = {task: None for task in self.births if not task.done()}
            self._births_max = max(_BIRTHS_MIN, 2 * len(self.births))
        assert len(self.births) <= self._births_max


INCARNATION: Final[ContextVar[Incarnation | None]] = ContextVar("incarnation", default=None)
