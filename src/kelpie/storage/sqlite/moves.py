"""The store's part in moving actors: seals, whole actors' rows, arrivals."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from functools import partial
from typing import Any

from kelpie.core.errors import LimitExceededError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import PACKAGE_ROWS_BYTES_MAX
from kelpie.storage.bounds import text_bytes
from kelpie.storage.moving import Arrival, Seal
from kelpie.storage.sqlite.arrivals import import_actor
from kelpie.storage.sqlite.batch import Work
from kelpie.storage.sqlite.departures import (
    SEALS,
    confirm_move,
    seal_actor,
    seal_of,
    unseal_actor,
)
from kelpie.storage.sqlite.reads import SqliteReads
from kelpie.storage.sqlite.tables import Which, read_rows
from kelpie.storage.tables import ACTORS, EVENTS, LISTS, OUTBOX, Row, Table


class SqliteMoves(SqliteReads):
    """What `kelpie.storage.moving.MoveStore` promises, over one file."""

    __slots__ = ()

    @abstractmethod
    def _submit(self, member: Work, size_bytes: int) -> asyncio.Future[Any]:
        """Queue a member of a transaction."""

    async def seal_actor(
        self, actor: ActorId, *, package: str, destination: str, principal: str, epoch: int
    ) -> Seal:
        """Seal an actor; one that is sealed already keeps its seal, which is returned.

        Raises:
            NotFoundError: There is no such actor.
            ConflictError: An effect of it is started.
            ActorMovedError: It moved for good.
            FencedError: The shard's epoch has moved.
        """
        size_bytes = text_bytes("destination", destination) + text_bytes("principal", principal)
        now_ms = self._clock.now_ms()
        wish = Seal(actor, "sealed", package, destination, 0, principal, now_ms)
        made: Seal = await self._submit(partial(seal_actor, wish=wish, epoch=epoch), size_bytes)
        assert made.actor == actor, "a seal is its actor's"
        assert made.state == "sealed", "an actor that moved is not sealed again"
        return made

    async def unseal_actor(self, actor: ActorId, *, principal: str, epoch: int) -> Seal:
        """Take an export back, and return the seal that was.

        Raises:
            NotFoundError: The actor is not sealed.
            ActorMovedError: The export was confirmed.
            FencedError: The shard's epoch has moved.
        """
        size_bytes = text_bytes("principal", principal)
        now_ms = self._clock.now_ms()
        member = partial(unseal_actor, actor=actor, epoch=epoch, principal=principal, now_ms=now_ms)
        was: Seal = await self._submit(member, size_bytes)
        assert was.actor == actor, "a seal is its actor's"
        assert was.state == "sealed", "only what can be taken back is"
        return was

    async def confirm_move(self, actor: ActorId, *, principal: str, epoch: int) -> Seal:
        """Remove what the package holds from here, and remember where it went.

        Messages that are not in the package become dead letters. Harmless when done before.

        Raises:
            NotFoundError: The actor is not sealed.
            FencedError: The shard's epoch has moved.
        """
        size_bytes = text_bytes("principal", principal)
        now_ms = self._clock.now_ms()
        member = partial(confirm_move, actor=actor, epoch=epoch, principal=principal, now_ms=now_ms)
        moved: Seal = await self._submit(member, size_bytes)
        assert moved.actor == actor, "a seal is its actor's"
        assert moved.state == "moved", "from here on it is elsewhere"
        return moved

    async def seals(self) -> list[Seal]:
        """Return every exported actor of the store, by name."""
        return [seal_of(row) for row in self._query(f"{SEALS} ORDER BY actor", (), "seals")]

    async def actor_rows(
        self, actor: ActorId, table: Table, *, after: Row | None, limit: int
    ) -> list[Row]:
        """Return up to ``limit`` rows of a living actor with a key above ``after``, by key.

        Of messages, those that its seal says are part of its package.

        Raises:
            NotFoundError: There is no such actor.
            CorruptionError: A checksum does not match.
        """
        name = str(actor)
        query = "SELECT incarnation, event_floor FROM actors WHERE actor = ? AND tombstoned = 0"
        living = await self._fetch_one(query, (name,), name)
        if living is None:
            raise NotFoundError("actor", name)
        which = _which(name, table, incarnation=living[0], floor=living[1])
        job = partial(read_rows, table=table, which=which, after=after, limit=limit)
        return await self._aside(job)

    async def import_actor(self, arrival: Arrival, *, epoch: int) -> int:
        """Write a whole actor, paused, under the next incarnation of its id, which is returned.

        Raises:
            ConflictError: It lives here, or the package arrived before; or what it owns belongs
                to another actor.
            LimitExceededError: There is more of it than fits one transaction.
            FencedError: The shard's epoch has moved.
        """
        every = (arrival.row, *(row for rows in arrival.rows.values() for row in rows))
        size_bytes = sum(size_of(row) for row in every)
        if size_bytes > PACKAGE_ROWS_BYTES_MAX:
            limit = PACKAGE_ROWS_BYTES_MAX
            raise LimitExceededError("package", actual=size_bytes, limit=limit, unit="bytes")
        member = partial(import_actor, arrival=arrival, epoch=epoch)
        incarnation: int = await self._submit(member, size_bytes)
        assert incarnation >= 1, "incarnations count from one"
        assert arrival.row[ACTORS.place("actor")] == str(arrival.actor), "its own row"
        return incarnation


def size_of(row: Row) -> int:
    """Return about how many bytes a row takes."""
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)


def _which(name: str, table: Table, *, incarnation: int, floor: int) -> Which:
    """Return the condition on the rows of a living actor that a package holds."""
    if table is OUTBOX:
        sealed = "(SELECT s.message_id FROM seals s WHERE s.actor = receiver)"
        return Which(f"receiver = ? AND message_id <= {sealed}", (name,))
    if table is EVENTS:
        return Which("actor = ? AND sequence > ?", (name, floor))
    if table is LISTS:
        return Which("owner = ? AND incarnation = ? AND deleted_ms IS NULL", (name, incarnation))
    if "incarnation" in table.names:
        return Which("actor = ? AND incarnation = ?", (name, incarnation))
    return Which("actor = ?", (name,))
