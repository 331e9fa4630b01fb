"""How the rest of the product reaches actors, wherever they are: the engine here, or a router.

Whoever calls depends on this alone, so that a node of a cluster can forward what is not its own.
"""

from __future__ import annotations

from typing import Any, Protocol

from kelpie.actors.activation import Envelope
from kelpie.actors.commands import Message
from kelpie.core.ids import ActorId
from kelpie.core.limits import INVOCATION_TIMEOUT_MS


class Calls(Protocol):
    """Calls and queries of actors. What each raises is said where `Engine` keeps it."""

    def accepting(self) -> bool:
        """Whether new calls are taken."""
        ...

    async def call(
        self,
        actor: ActorId,
        message: Message,
        *,
        principal: str,
        key: str | None = None,
        timeout_ms: int = INVOCATION_TIMEOUT_MS,
        internal: bool = False,
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        """Run one turn, below ``chain``, and return its reply once it is durable."""
        ...

    async def query(
        self,
        actor: ActorId,
        query: Message,
        *,
        chain: tuple[ActorId, ...] = (),
        timeout_ms: int = INVOCATION_TIMEOUT_MS,
    ) -> Any:
        """Answer from the last finished turn's state, once that is durable, below ``chain``."""
        ...

    def begin(
        self, actor: ActorId, message: Message, principal: str, timeout_ms: int, *, is_query: bool
    ) -> Envelope:
        """Give an actor a call or a query without a key; its answer may be there at once."""
        ...

    def may_go_on(self, envelope: Envelope, /) -> bool:
        """Return whether the answer is there and its caller may have it within this tick."""
        ...

    async def answer(self, envelope: Envelope, timeout_ms: int) -> Any:
        """Return the answer once it is there."""
        ...
