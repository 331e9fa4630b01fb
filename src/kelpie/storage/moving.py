"""Actors that leave a store as a package, and arrive in another.

An export seals its actor: from then on the actor takes no turn, and what is sent to it waits, until
the export is taken back or confirmed. An arrival is one commit, and the actor is paused in it:
nothing of it goes on before a person says so.

Invariants: an actor is never open in two stores, as long as nobody takes an export back whose
package was imported; a package arrives in a store once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from kelpie.core.ids import ActorId
from kelpie.storage.tables import Row, Table

SealState = Literal["sealed", "moved"]
HELD_BY: Final = "system:teleport"
"""The principal of the pause in which an actor arrives."""


class Seal(NamedTuple):
    """An exported actor: ``moved`` once the export is confirmed.

    ``destination`` is for people. ``message_id`` is the newest message in the package: what was
    sent later waits here.
    """

    actor: ActorId
    state: SealState
    package: str
    destination: str
    message_id: int
    principal: str
    at_ms: int


class Arrival(NamedTuple):
    """An actor that arrives: its row of ``actors``, and its other rows by table."""

    actor: ActorId
    package: str
    row: Row
    rows: Mapping[str, Sequence[Row]]
    principal: str
    at_ms: int


class MoveStore(Protocol):
    """Sealing, reading and writing whole actors. Every change is one transaction, and audited."""

    async def seal_actor(
        self, actor: ActorId, *, package: str, destination: str, principal: str, epoch: int
    ) -> Seal:
        """Seal an actor; one that is sealed already keeps its seal, which is returned.

        Commits that were made before it stand; every later one is refused.

        Raises:
            NotFoundError: There is no such actor.
            ConflictError: An effect of it is started.
            ActorMovedError: It moved for good.
            FencedError: The shard's epoch has moved.
        """
        ...

    async def unseal_actor(self, actor: ActorId, *, principal: str, epoch: int) -> Seal:
        """Take an export back, and return the seal that was.

        Raises:
            NotFoundError: The actor is not sealed.
            ActorMovedError: The export was confirmed.
            FencedError: The shard's epoch has moved.
        """
        ...

    async def confirm_move(self, actor: ActorId, *, principal: str, epoch: int) -> Seal:
        """Remove what the package holds from here, and remember where it went.

        Messages that are not in the package become dead letters. Harmless when done before.

        Raises:
            NotFoundError: The actor is not sealed.
            FencedError: The shard's epoch has moved.
        """
        ...

    async def seals(self) -> list[Seal]:
        """Return every exported actor of the store, by name."""
        ...

    async def actor_rows(
        self, actor: ActorId, table: Table, *, after: Row | None, limit: int
    ) -> list[Row]:
        """Return up to ``limit`` rows of a living actor with a key above ``after``, by key."""
        ...

    async def import_actor(self, arrival: Arrival, *, epoch: int) -> int:
        """Write a whole actor, paused, under the next incarnation of its id, which is returned.

        Raises:
            ConflictError: It lives here, or the package arrived before; or what it owns belongs
                to another actor.
            LimitExceededError: There is more of it than fits one transaction.
            FencedError: The shard's epoch has moved.
        """
        ...
