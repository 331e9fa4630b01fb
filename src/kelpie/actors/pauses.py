"""Pauses that outlive the process: the engine holds the commands back, the store remembers why.

Invariant: an actor that a caller was told is paused, is paused after a restart too; and one that
was resumed is not.
"""

from __future__ import annotations

from kelpie.actors.engine import Engine
from kelpie.core.errors import FencedError, KelpieError
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.storage.protocol import Store
from kelpie.storage.records import StoredPause


class Pauses:
    """The paused actors of one process's store."""

    def __init__(self, *, store: Store, engine: Engine, clock: Clock) -> None:
        self._store = store
        self._engine = engine
        self._clock = clock
        self._epochs = {grant.shard: grant.epoch for grant in store.grants()}

    async def load(self) -> None:
        """Pause what the store says is paused; to be done before anything is delivered.

        Actors of types that are not hosted here have no turns here.
        """
        for pause in await self._store.pauses():
            if self._engine.is_hosted(pause.actor.type):
                self._engine.pause(pause.actor)
                assert self._engine.is_paused(pause.actor)

    async def pause(self, actor: ActorId, *, principal: str) -> None:
        """Let the actor's commands wait until `resume`; durable when it returns.

        Raises:
            OverloadedError: Too many actors are paused.
            StoreError: The pause could not be kept, and does not hold.
        """
        was_paused = self._engine.is_paused(actor)
        self._engine.pause(actor)
        try:
            await self._store.pause_actor(self._note(actor, principal), epoch=self._epoch(actor))
        except KelpieError:
            if not was_paused:
                self._engine.resume(actor)
            raise

    async def resume(self, actor: ActorId, *, principal: str) -> None:
        """Give the waiting commands their turns, once the pause's end is durable.

        Raises:
            StoreError: The end could not be kept, and the pause holds.
        """
        await self._store.resume_actor(self._note(actor, principal), epoch=self._epoch(actor))
        self._engine.resume(actor)

    def _note(self, actor: ActorId, principal: str) -> StoredPause:
        return StoredPause(actor, principal, self._clock.now_ms())

    def _epoch(self, actor: ActorId) -> int:
        epoch = self._epochs.get(actor.shard)
        if epoch is None:
            raise FencedError(f"this node does not own the shard of {actor}")
        return epoch
