"""An actor behind a gate that wishes what a model wants, and remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from kelpie.actors.commands import Message
from kelpie.actors.machine import Decision, Turn
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects import messages as m
from kelpie.effects.model import Effect
from kelpie.storage.records import StoredActor

ACTOR: Final = ActorId(TENANT_DEFAULT, "wisher", "w")
GRANT_REF: Final = "the grant"


class WishAll(Message, frozen=True, tag="wisher.wish"):
    """Ask for the effects that the model is about."""


class GiveUp(Message, frozen=True, tag="wisher.give_up"):
    """Give up on the effect called ``ref``."""

    ref: str


class CloseGrantOf(Message, frozen=True, tag="wisher.close_grant"):
    """Say that the grant called ``ref`` has no more members to start."""

    ref: str


Told = tuple[tuple[str, str], ...]
"""What the gate told the actor: refs with what became of them, in order."""


@dataclass(frozen=True, slots=True)
class Wisher:
    """An actor that wishes ``first``, and ``members`` under the first grant that it gets."""

    first: tuple[Effect, ...]
    members: tuple[Effect, ...] = ()

    @property
    def type_name(self) -> str:
        """The type of its actors."""
        return "wisher"

    @property
    def schema_version(self) -> int:
        """The version of its memory."""
        return 1

    @property
    def message_type(self) -> Any:
        """What it takes."""
        return WishAll | GiveUp | CloseGrantOf

    def create(self, actor: ActorId) -> Told:
        """Return the memory of an actor that was told nothing."""
        assert actor.type == self.type_name, "a wisher wishes"
        return ()

    def load(self, stored: StoredActor) -> Told:
        """Decode a stored memory."""
        return msgspec.msgpack.decode(stored.state, type=Told)

    def dump(self, state: Told) -> bytes:
        """Encode a memory."""
        return msgspec.msgpack.encode(state)

    def decide(self, state: Told, message: Message, turn: Turn) -> Decision[Told]:
        """Ask the gate, or remember what it says."""
        assert turn.actor.type == self.type_name, "another actor's turn"
        match message:
            case WishAll():
                return Decision(state=state, commands=self.first)
            case GiveUp(ref=ref):
                return Decision(state=state, commands=(m.CancelEffect(ref=ref),))
            case CloseGrantOf(ref=ref):
                return Decision(state=state, commands=(m.CloseGrant(ref=ref),))
            case m.EffectApproved(ref=ref, effect_id=grant) if ref == GRANT_REF:
                members = tuple(replace(member, grant=grant) for member in self.members)
                return Decision(state=state, commands=members)
            case m.EffectSettled(ref=ref, record=record):
                return Decision(state=(*state, (ref, record.state)))
            case _:
                return Decision(state=state)

    def query(self, state: Told, query: Message) -> Told:
        """Return the memory, whatever the question."""
        assert isinstance(query, Message), "questions are messages"
        return state
