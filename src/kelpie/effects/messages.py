"""Messages of the spine: what the dispatcher and people tell the gate, and what it tells a machine.

The gate consumes the first group; the actor's own machine receives the second group and nothing
else about effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kelpie.actors.commands import Command, Message
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation

# --- to the gate --------------------------------------------------------------------------------


class EffectPrepared(Message, frozen=True, tag="effect.prepared"):
    """The executor looked at the target of a proposed effect."""

    effect_id: str
    preparation: Preparation | None = None
    failure: Outcome | None = None


class StartEffect(Message, frozen=True, tag="effect.start"):
    """The dispatcher asks to start an approved effect; replies with the record as it then is."""

    reply_type: ClassVar[Any] = EffectRecord

    effect_id: str
    session: str


class EffectFinished(Message, frozen=True, tag="effect.finished"):
    """An attempt came to an outcome."""

    effect_id: str
    attempt: int
    outcome: Outcome


class RecoverEffect(Message, frozen=True, tag="effect.recover"):
    """The session that ran this attempt has ended; decide by promise what follows.

    ``untouched`` says that reconciliation found the target as it was before the attempt.
    ``restored`` says that the whole store came back from a copy: a ``once`` effect that was
    approved or started may have run since, so its outcome is unknown.
    """

    effect_id: str
    attempt: int
    ended_session: str
    untouched: bool = False
    restored: bool = False


class ApproveEffect(Message, frozen=True, tag="effect.approve"):
    """A person says yes to the effect with this digest; replies with the record."""

    reply_type: ClassVar[Any] = EffectRecord

    effect_id: str
    digest: str = ""
    reason: str = ""


class DenyEffect(Message, frozen=True, tag="effect.deny"):
    """A person says no; replies with the record."""

    reply_type: ClassVar[Any] = EffectRecord

    effect_id: str
    reason: str = ""


class ExpireEffect(Message, frozen=True, tag="effect.expire"):
    """A waiting effect's question may have run out."""

    effect_id: str


class ResolveEffect(Message, frozen=True, tag="effect.resolve"):
    """A person or a probe says what became of an unknown effect; replies with the record."""

    reply_type: ClassVar[Any] = EffectRecord

    effect_id: str
    succeeded: bool
    reason: str


class ShowEffects(Message, frozen=True, tag="effect.show"):
    """Query: the open effect records of this actor."""

    reply_type: ClassVar[Any] = tuple[EffectRecord, ...]


# --- from the gate to the machine ---------------------------------------------------------------


class EffectWaiting(Message, frozen=True, tag="effect.waiting"):
    """An effect of this machine now waits for a person."""

    effect_id: str
    ref: str
    card: DiffCard


class EffectApproved(Message, frozen=True, tag="effect.approved"):
    """A person approved a waiting effect of this machine; a settlement follows later."""

    effect_id: str
    ref: str


class EffectSettled(Message, frozen=True, tag="effect.settled"):
    """An effect of this machine reached an end (``unknown`` may later settle again)."""

    effect_id: str
    ref: str
    record: EffectRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelEffect(Command):
    """A machine's command: give up on an open effect of its own.

    Before start it settles as ``cancelled``; a started attempt is stopped if its executor can.
    """

    ref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseGrant(Command):
    """A machine's command: a grant it held has no more members to start."""

    ref: str
