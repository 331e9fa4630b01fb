"""Pauses that outlive the process: the engine holds the commands back, the store remembers why.

Invariant: an actor that a caller was told is paused, is paused after a restart too; and one that
was resumed is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container

from kelpie.actors.engine import Engine
from kelpie.actors.pump import PumpDeps
from kelpie.core.errors import KelpieError
from kelpie.core.ids import ActorId
from kelpie.storage.records import StoredPause


class Pauses:
    """The paused actors of one process's store."""

    def __init__(self, deps: PumpDeps) -> None:
        self._store = deps.store
        self._engine: Engine = deps.runtime
        self._clock = deps.clock
        self._supervisor = deps.supervisor
        self._changing = asyncio.Lock()  # so that memory and store change in the same order
        self._ownership = deps.runtime.ownership

    async def load(self, shards: Container[int] | None = None) -> None:
        """Pause what the store says is paused; to be done before anything is delivered.

        With ``shards`` these alone are looked at: those that the store has granted and that are to
        be gained next. Actors of types that are not hosted here have no turns here.
        """
        for pause in await self._store.pauses():
            is_ours = shards is None or pause.actor.shard in shards
            if is_ours and self._engine.hosts(pause.actor.type):
                self._engine.pause(pause.actor)
                assert self._engine.is_paused(pause.actor)

    async def pause(self, actor: ActorId, *, principal: str) -> None:
        """Let the actor's commands wait until `resume`; durable when it returns.

        Raises:
            NotFoundError: Its type is not hosted here.
            NotOwnerError: Its shard is not served here.
            OverloadedError: Too many actors are paused.
            StoreError: The pause could not be kept, and does not hold.
        """
        await self._supervisor.finish("actors.pause", self._pause(actor, principal))

    async def _pause(self, actor: ActorId, principal: str) -> None:
        async with self._changing:
            epoch = self._ownership.epoch(actor.shard)
            was_paused = self._engine.is_paused(actor)
            self._engine.pause(actor)
            note = self._note(actor, principal)
            try:
                await self._store.pause_actor(note, epoch=epoch)
            except KelpieError:
                if not was_paused:
                    self._engine.resume(actor)
                raise

    async def resume(self, actor: ActorId, *, principal: str) -> None:
        """Give the waiting commands their turns, once the pause's end is durable.

        Raises:
            NotOwnerError: Its shard is not served here.
            StoreError: The end could not be kept, and the pause holds.
        """
        await self._supervisor.finish("actors.resume", self._resume(actor, principal))

    async def _resume(self, actor: ActorId, principal: str) -> None:
        async with self._changing:
            epoch = self._ownership.epoch(actor.shard)
            note = self._note(actor, principal)
            await self._store.resume_actor(note, epoch=epoch)
            self._engine.resume(actor)

    def _note(self, actor: ActorId, principal: str) -> StoredPause:
        return StoredPause(actor, principal, self._clock.now_ms())
