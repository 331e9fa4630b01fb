"""Pauses that outlive the process: the engine holds the commands back, the store remembers why.

Invariant: an actor that a caller was told is paused, is paused after a restart too; and one that
was resumed is not.
"""

from __future__ import annotations

import asyncio

from kelpie.actors.engine import Engine
from kelpie.actors.pump import RETRY_DELAY_MS_MIN, PumpDeps
from kelpie.core.errors import KelpieError
from kelpie.core.ids import ActorId
from kelpie.storage.records import StoredPause


class Pauses:
    """The paused actors of one process's store."""

    def __init__(self, deps: PumpDeps) -> None:
        self._store = deps.store
        self._engine: Engine = deps.runtime
        self._clock = deps.clock
        self._telemetry = deps.telemetry
        self._supervisor = deps.supervisor
        self._changing = asyncio.Lock()  # so that memory and store change in the same order
        self._ownership = deps.runtime.ownership
        self._ownership.listen(gained=self._gained)

    async def load(self) -> None:
        """Pause what the store says is paused; to be done before anything is delivered.

        Actors of types that are not hosted here, or of shards that are not owned, have no turns
        here; those of a shard that is gained later are looked up then.
        """
        for pause in await self._store.pauses():
            if self._ownership.is_whole or self._ownership.owns(pause.actor.shard):
                self._take(pause)

    def _take(self, pause: StoredPause) -> None:
        if self._engine.hosts(pause.actor.type):
            self._engine.pause(pause.actor)
            assert self._engine.is_paused(pause.actor)

    def _gained(self, shards: frozenset[int]) -> None:
        """Let the actors of a gained shard wait until it is known which of them are paused."""
        known = asyncio.Event()
        self._engine.hold(shards, known)
        self._supervisor.spawn("actors.pauses", self._load_gained(known))

    async def _load_gained(self, known: asyncio.Event) -> None:
        stored: list[StoredPause] | None = None
        while stored is None:
            try:
                stored = await self._store.pauses()
            except KelpieError as error:
                self._telemetry.log("warning", "pauses.unread", error=error.message)
                await self._clock.sleep(RETRY_DELAY_MS_MIN / 1000)
        shards = self._engine.holding(known)  # without those that were lost or gained anew since
        for pause in stored:
            if pause.actor.shard in shards:
                self._take(pause)
        self._engine.release(known)

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
