"""What a person who looks at one actor is shown of it."""

from __future__ import annotations

from dataclasses import dataclass

from kelpie.actors.activation import Activation, Phase
from kelpie.actors.blocking import NANOSECONDS_PER_MS
from kelpie.actors.commands import tag_of
from kelpie.core.ids import ActorId


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One actor as this process has it.

    Attributes:
        phase: Where in its life the activation is; ``absent`` when it is not in memory.
        version: Turns that changed it; ``durable_version`` of them are on disk.
        mailbox: How many calls wait for their turn.
        handler: The method whose handler runs now, empty when none does.
        handler_ms: How long it has been running.
        paused: Whether commands wait until somebody resumes the actor.
        size_bytes: The encoded state's size.
    """

    actor: ActorId
    phase: Phase | str
    version: int
    durable_version: int
    incarnation: int
    mailbox: int
    handler: str
    handler_ms: int
    paused: bool
    size_bytes: int


def inspect_activation(activation: Activation, phase: Phase | str, *, now_ns: int) -> Inspection:
    """Return what the activation looks like at the boot time ``now_ns``."""
    running = activation.running
    held_ns = now_ns - running.began_ns if running else 0
    return Inspection(
        actor=activation.actor,
        phase=phase,
        version=activation.version,
        durable_version=activation.durable_version,
        incarnation=activation.incarnation,
        mailbox=len(activation.mailbox or ()),
        handler=tag_of(running.envelope.message) if running else "",
        handler_ms=held_ns // NANOSECONDS_PER_MS,
        paused=activation.paused,
        size_bytes=activation.size_bytes,
    )
