"""Care of single actors: pause, resume, stop, withdraw, look.

Owns who is told of a resumed actor. Invariant: a paused actor takes no command, whatever is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from kelpie.actors.activation import Activation
from kelpie.actors.hosted import Hosted
from kelpie.actors.inspection import Inspection, inspect_activation
from kelpie.actors.turns import Turns
from kelpie.core.errors import NotFoundError, VersionConflictError
from kelpie.core.ids import ActorId


class KeyCare:
    """What people do with one actor of this process."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._residents = turns.residents
        self._clock = turns.ports.clock
        self._resume_listeners: list[Callable[[ActorId], None]] = []

    def listen_resumed(self, listener: Callable[[ActorId], None]) -> None:
        """Tell ``listener`` of every actor that is resumed from now on."""
        assert listener not in self._resume_listeners, "a listener is told once"
        self._resume_listeners.append(listener)
        assert self._resume_listeners

    def pause(self, actor: ActorId) -> None:
        """Let commands, messages and reminders of ``actor`` wait; queries are still answered.

        A pause lasts until `resume`; `Pauses` keeps it in the store. Harmless when paused before.

        Raises:
            NotFoundError: The actor's type is not hosted here.
        """
        hosted = self._hosted(actor)
        assert hosted.machine.type_name == actor.type, "a type has one machine"
        self._turns.paused.add(actor)
        activation = self._residents.get(actor)
        if activation is not None:
            activation.paused = True
        assert activation is None or not activation.open, "a paused actor takes no command"
        assert actor in self._turns.paused

    def resume(self, actor: ActorId) -> None:
        """Give the waiting calls of a paused actor their turns; harmless when not paused."""
        self._turns.paused.discard(actor)
        activation = self._residents.get(actor)
        if activation is not None and activation.paused:
            activation.paused = False
            self._turns.run_mailbox(activation)
        for listener in self._resume_listeners:
            listener(actor)
        assert activation is None or not activation.paused
        assert actor not in self._turns.paused

    def kill(self, actor: ActorId) -> bool:
        """Stop the actor's handler, fail what waits for it, and load it anew at the next call.

        What was durable stays, and what is on its way to the disk is answered as it comes out.
        Returns whether the actor was in memory.
        """
        activation = self._residents.get(actor)
        if activation is None or activation.phase == "gone":
            return False
        error = VersionConflictError(f"{actor} was killed; try again", actor=str(actor))
        queued, activation.mailbox = activation.mailbox, None
        for envelope in queued or ():
            envelope.fail(error)
        self._turns.departures.renew(activation)
        assert not activation.open, "a killed actor takes no turn before it is loaded again"
        assert activation.mailbox is None
        return True

    def is_paused(self, actor: ActorId) -> bool:
        """Whether the actor's commands wait until somebody resumes it."""
        return actor in self._turns.paused

    def is_running(self, actor: ActorId, message_id: int) -> bool:
        """Whether the actor's handler runs for this stored message now."""
        activation = self._residents.get(actor)
        running = activation.running if activation is not None else None
        return running is not None and running.envelope.message_id == message_id

    def withdraw(self, actor: ActorId, message_id: int) -> bool:
        """Take a stored message out of the mailbox, where it waits for its turn to begin.

        Whoever delivered it is told to try again. Returns whether it was there.
        """
        activation = self._residents.get(actor)
        mailbox = activation.mailbox if activation is not None else None
        if mailbox is None:
            return False
        found = [envelope for envelope in mailbox if envelope.message_id == message_id]
        for envelope in found:
            mailbox.remove(envelope)
            text = f"message {message_id} to {actor} was withdrawn"
            envelope.fail(VersionConflictError(text, actor=str(actor)))
        assert all(envelope.message_id != message_id for envelope in mailbox)
        assert all(envelope.is_answered for envelope in found)
        return bool(found)

    def inspect(self, actor: ActorId) -> Inspection:
        """Return the actor as this process has it."""
        activation = self._residents.get(actor)
        if activation is not None:
            return inspect_activation(activation, activation.phase, now_ns=self._clock.boot_ns())
        absent = Activation(actor, self._hosted(actor))
        absent.paused = actor in self._turns.paused
        return inspect_activation(absent, "absent", now_ns=0)

    def _hosted(self, actor: ActorId) -> Hosted:
        hosted = self._turns.types.get(actor.type)
        if hosted is None:
            raise NotFoundError("actor type", actor.type)
        return hosted
