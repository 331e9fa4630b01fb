"""What the actor routes need from the house: user-defined types, and nothing of the built-in ones.

Owns no behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kelpie.actors.api.gateway import TypeInfo
from kelpie.actors.engine import Inspection
from kelpie.core.ids import ActorId


class ActorService(Protocol):
    """User-defined actors by name.

    Eight methods, because the command line has a verb for each and they share one registry.
    """

    def types(self) -> Sequence[TypeInfo]:
        """Return the user-defined types, by name."""
        ...

    def hosts(self, type_name: str) -> bool:
        """Whether a user-defined type has this name."""
        ...

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
        """
        ...

    def inspect(self, actor: ActorId) -> Inspection:
        """Return the actor as this process has it."""
        ...

    def pause(self, actor: ActorId) -> None:
        """Let the actor's commands wait."""
        ...

    def resume(self, actor: ActorId) -> None:
        """Give the waiting commands their turns."""
        ...

    def kill(self, actor: ActorId) -> bool:
        """Stop the actor's handler; was it in memory?"""
        ...

    async def replay(self, message_id: int) -> None:
        """Give a dead letter all its attempts again.

        Raises:
            NotFoundError: There is no such dead letter.
        """
        ...
