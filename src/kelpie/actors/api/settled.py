"""Effects as actor classes see them, and the port through which the spine takes them.

The effects' own room is above this one: it is given to the hosting as an `EffectPort`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from kelpie.actors.commands import Command, Message


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an effect.

    Attributes:
        ref: The name that ``ctx.effect`` gave it.
        status: ``done``, or why not: ``failed``, ``denied``, ``expired``, ``voided`` (the target
            moved), ``cancelled``, or ``unknown`` (it may or may not have happened).
        result: What the executor returned.
        error: What went wrong, for people.
    """

    ref: str
    status: Literal["done", "failed", "denied", "expired", "voided", "cancelled", "unknown"]
    result: dict[str, Any] = {}
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectWish:
    """An effect that a handler asks for."""

    kind: str
    ref: str
    args: dict[str, Any]
    timeout_ms: int
    summary: str


class EffectPort(Protocol):
    """How wishes become effects of the spine, and its news come back."""

    def propose(self, wish: EffectWish) -> Command:
        """Return the command that asks for the effect."""
        ...

    def read(self, message: Message) -> Settled | None:
        """Return what a message says about an effect's end; None when it says something else."""
        ...
