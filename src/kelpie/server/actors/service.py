"""What the actor routes need from the house: user-defined types, and nothing of the built-in ones.

Owns no behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kelpie.actors.api.gateway import TypeInfo
from kelpie.actors.callers import CallStatus
from kelpie.actors.engine import Inspection
from kelpie.actors.submissions import SubmittedCall
from kelpie.core.ids import ActorId, Tenant
from kelpie.storage.records import Page


class CallBook(Protocol):
    """Submitted calls by id; each is of one tenant."""

    async def wait(self, tenant: Tenant, call_id: str, wait_s: float) -> SubmittedCall:
        """Return the call once it has ended, or as it is after ``wait_s``.

        Raises:
            NotFoundError: There is none, or its end is not kept any more.
        """
        ...

    async def find(
        self, page: Page, *, status: CallStatus | None, actor: ActorId | None
    ) -> list[SubmittedCall]:
        """Return calls by their submission, oldest first; without their results."""
        ...

    async def cancel(self, tenant: Tenant, call_id: str) -> SubmittedCall:
        """Take a call back that has not begun.

        Raises:
            CallBegunError: It runs, or has ended.
            NotFoundError: There is none, or its end is not kept any more.
        """
        ...


class ActorService(Protocol):
    """User-defined actors by name.

    More than seven members, because the command line has a verb for each and they share one
    registry.
    """

    def types(self) -> Sequence[TypeInfo]:
        """Return the user-defined types, by name."""
        ...

    @property
    def built_in_types(self) -> frozenset[str]:
        """The types that are Kelpie's own."""
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

    @property
    def calls(self) -> CallBook:
        """The submitted calls, by id."""
        ...

    def is_command(self, type_name: str, method: str) -> bool:
        """Whether this method can be submitted.

        Raises:
            NotFoundError: No such type or method.
        """
        ...

    async def submit(
        self, actor: ActorId, method: str, arguments: bytes, *, principal: str, key: str | None
    ) -> SubmittedCall:
        """Keep a call of a command with a JSON object; it runs by itself.

        Raises:
            NotFoundError: No such type or command.
            InvalidFieldError: An argument is missing, unknown or of another type.
        """
        ...

    def result_json(self, call: SubmittedCall) -> bytes:
        """Return what a completed call came to, as JSON."""
        ...

    async def paused_among(self, actors: Sequence[ActorId]) -> frozenset[ActorId]:
        """Return those of the actors whose commands wait until somebody resumes them."""
        ...

    def inspect(self, actor: ActorId) -> Inspection:
        """Return the actor as this process, its owner, has it.

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        ...

    async def pause(self, actor: ActorId, *, principal: str) -> None:
        """Let the actor's commands wait, across restarts."""
        ...

    async def resume(self, actor: ActorId, *, principal: str) -> None:
        """Give the waiting commands their turns."""
        ...

    def kill(self, actor: ActorId) -> bool:
        """Stop the actor's handler; was it in memory?

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        ...

    async def replay(self, message_id: int) -> None:
        """Give a dead letter all its attempts again.

        Raises:
            NotFoundError: There is no such dead letter.
        """
        ...
