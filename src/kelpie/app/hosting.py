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
from kelpie.app.embed import SpinePort
from kelpie.app.wiring import Node
from kelpie.core.errors import InvalidFieldError, NotFoundError
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
        store=node.store,
        hub=node.hub,
        wake_outbox=node.outbox.wake,
        kinds=kinds,
    )
    return HostedActors(gateway, kinds)


class HostedActors:
    """The user-defined actors of a node. Implements `ActorService`."""

    def __init__(self, gateway: Gateway, kinds: Sequence[Kind]) -> None:
        self._gateway = gateway
        self._definitions = {kind.type_name(): definition_of(kind) for kind in kinds}
        self._types = gateway.types()

    def types(self) -> Sequence[TypeInfo]:
        """Return the user-defined types, by name."""
        return self._types

    def hosts(self, type_name: str) -> bool:
        """Whether a user-defined type has this name."""
        return type_name in self._definitions

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
        definition = self._definitions.get(actor.type)
        found = definition.methods.get(method) if definition is not None else None
        if found is None:
            raise NotFoundError("method", f"{actor.type}.{method[:200]}")
        try:
            return await self._gateway.call(
                actor, method, arguments, principal=principal, key=key, timeout_ms=timeout_ms
            )
        except InvalidFieldError:
            decode_body(arguments, found.payload)  # names an argument in the edge's words
            raise

    def inspect(self, actor: ActorId) -> Inspection:
        """Return the actor as this process has it."""
        return self._gateway.inspect(actor)

    def pause(self, actor: ActorId) -> None:
        """Let the actor's commands wait."""
        self._gateway.pause(actor)

    def resume(self, actor: ActorId) -> None:
        """Give the waiting commands their turns."""
        self._gateway.resume(actor)

    def kill(self, actor: ActorId) -> bool:
        """Stop the actor's handler; was it in memory?"""
        return self._gateway.kill(actor)

    async def replay(self, message_id: int) -> None:
        """Give a dead letter all its attempts again.

        Raises:
            NotFoundError: There is no such dead letter.
        """
        await self._gateway.replay(message_id)
