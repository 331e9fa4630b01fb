"""Hosts user-defined actor classes beside the built-in machines of a node, and shows them outside.

Invariants: a user-defined type never has a built-in type's name, so that a name below
``/v1/actors`` can never reach an agent, a plan or a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kelpie.actors.api.definition import Actor, definition_of
from kelpie.actors.api.gateway import Gateway, TypeInfo
from kelpie.actors.api.hosting import ActorMachine
from kelpie.actors.engine import Inspection
from kelpie.actors.submissions import Submissions, SubmittedCall
from kelpie.app.embed import SpinePort
from kelpie.app.wiring import Node
from kelpie.core.errors import InvalidFieldError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects.gate import Gated
from kelpie.server.decoding import decode_body

Kind = type[Actor[Any]]


def host_actors(node: Node, kinds: Sequence[Kind]) -> HostedActors:
    """Host the classes on ``node`` before it is driven.

    Raises:
        DefinitionError: A class cannot be hosted as it is written.
        InvalidFieldError: A type name is taken, or no name at all.
    """
    taken = dict.fromkeys(node.built_in_types, "a built-in type")
    for kind in kinds:
        name = kind.type_name()
        ActorId(TENANT_DEFAULT, name, "key")
        if name in taken:
            problem = f"{kind.__qualname__}: {name!r} is the name of {taken[name]} already; "
            raise InvalidFieldError("actor_type", f"{problem}set its actor_type to another")
        taken[name] = kind.__qualname__
        definition_of(kind)
    for kind in kinds:
        node.runtime.register(Gated(ActorMachine(kind, SpinePort()), node.rules))
    gateway = Gateway(
        engine=node.runtime,
        runtime=node.calls_to,
        store=node.store,
        hub=node.hub,
        wake_outbox=node.outbox.wake,
        calls=node.calls,
        pauses=node.pauses,
        kinds=kinds,
    )
    return HostedActors(gateway, kinds, node.built_in_types)


class HostedActors:
    """The user-defined actors of a node. Implements `ActorService`."""

    def __init__(
        self, gateway: Gateway, kinds: Sequence[Kind], built_in_types: frozenset[str]
    ) -> None:
        self.built_in_types = built_in_types
        self._gateway = gateway
        self._names = frozenset(kind.type_name() for kind in kinds)
        self._types = gateway.types()

    def types(self) -> Sequence[TypeInfo]:
        """Return the user-defined types, by name."""
        return self._types

    def hosts(self, type_name: str) -> bool:
        """Whether a user-defined type has this name."""
        return type_name in self._names

    async def call(
        self,
        actor: ActorId,
        method: str,
        arguments: bytes,
        *,
        principal: str,
        key: str | None,
        timeout_ms: int,
    ) -> bytes:
        """Call a command or a query with a JSON object; return the result as JSON.

        Raises:
            NotFoundError: No such type or method.
            InvalidFieldError: An argument is missing, unknown or of another type.
            KelpieError: As `Gateway.call`.
        """
        found = self._gateway.method(actor.type, method)
        try:
            return await self._gateway.call(
                actor, method, arguments, principal=principal, key=key, timeout_ms=timeout_ms
            )
        except InvalidFieldError:
            decode_body(arguments, found.payload)  # names an argument in the edge's words
            raise

    @property
    def calls(self) -> Submissions:
        """The submitted calls, by id."""
        return self._gateway.submissions

    def is_command(self, type_name: str, method: str) -> bool:
        """Whether this method can be submitted.

        Raises:
            NotFoundError: No such type or method.
        """
        return self._gateway.method(type_name, method).kind == "command"

    async def submit(
        self, actor: ActorId, method: str, arguments: bytes, *, principal: str, key: str | None
    ) -> SubmittedCall:
        """Keep a call of a command with a JSON object.

        Raises:
            NotFoundError: No such type or command.
            InvalidFieldError: An argument is missing, unknown or of another type.
            KelpieError: As `Submissions.submit`.
        """
        decode_body(arguments, self._gateway.method(actor.type, method).payload)
        return await self._gateway.submit_named(
            actor, method, arguments, principal=principal, key=key
        )

    def result_json(self, call: SubmittedCall) -> bytes:
        """Return what a completed call came to, as JSON."""
        return self._gateway.result_json(call)

    def inspect(self, actor: ActorId) -> Inspection:
        """Return the actor as this process, its owner, has it.

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        return self._gateway.inspect(actor)

    async def paused_among(self, actors: Sequence[ActorId]) -> frozenset[ActorId]:
        """Return those of the actors whose commands wait until somebody resumes them.

        Raises:
            StoreError: Some are other nodes', and the store cannot be read.
        """
        return await self._gateway.paused_among(actors)

    async def pause(self, actor: ActorId, *, principal: str) -> None:
        """Let the actor's commands wait, across restarts."""
        await self._gateway.pause(actor, principal=principal)

    async def resume(self, actor: ActorId, *, principal: str) -> None:
        """Give the waiting commands their turns."""
        await self._gateway.resume(actor, principal=principal)

    def kill(self, actor: ActorId) -> bool:
        """Stop the actor's handler; was it in memory?

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        return self._gateway.kill(actor)

    async def replay(self, message_id: int) -> None:
        """Give a dead letter all its attempts again.

        Raises:
            NotFoundError: There is no such dead letter.
        """
        await self._gateway.replay(message_id)
