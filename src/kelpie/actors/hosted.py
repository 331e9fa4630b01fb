"""An actor type as this process hosts it: its machine, and how many of its handlers run."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from kelpie.actors.commands import Message
from kelpie.actors.machine import Machine, extras_of

if TYPE_CHECKING:
    from kelpie.actors.activation import Activation


class Hosted:
    """One actor type. ``waiting`` are actors whose next handler has no slot, first come first.

    ``decide`` is the machine's; ``are_async`` is what `is_async` has answered so far.
    """

    __slots__ = (
        "are_async",
        "concurrency_max",
        "decide",
        "decoder",
        "extras",
        "machine",
        "running_count",
        "waiting",
    )

    def __init__(self, machine: Machine[Any]) -> None:
        self.machine = machine
        self.decide = machine.decide
        self.extras = extras_of(machine)
        self.decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(machine.message_type)
        self.concurrency_max = self.extras.concurrency_max if self.extras else 0
        self.running_count = 0
        self.are_async: dict[type[Message], bool] = {}
        self.waiting: deque[Activation] = deque()

    def is_async(self, message: Message) -> bool:
        """Return whether messages of this one's type need a task; asks the machine once."""
        kind = type(message)
        known = self.are_async.get(kind)
        if known is None:
            known = self.extras is not None and self.extras.is_async(message)
            assert kind not in self.are_async, "asked once"
            self.are_async[kind] = known
            assert not known or self.extras is not None, "a pure machine never waits"
        return known

    @property
    def is_full(self) -> bool:
        """Whether one more handler would be too many, or unfair to those who wait."""
        return self.concurrency_max > 0 and (
            self.running_count >= self.concurrency_max or bool(self.waiting)
        )

    def enter(self) -> None:
        """Count a handler that begins."""
        assert self.concurrency_max == 0 or self.running_count < self.concurrency_max, "no slot"
        self.running_count += 1
        assert self.running_count > 0

    def leave(self) -> None:
        """Count a handler that ended."""
        assert self.running_count > 0, "more handlers ended than began"
        self.running_count -= 1
        assert self.running_count >= 0
