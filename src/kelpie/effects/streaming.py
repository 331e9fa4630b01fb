"""The stream of one attempt: what its executor says while it works, durable before it is seen.

Invariants: a later attempt's stream begins with ``restart``; nothing is written for a shard that is
not owned. Whoever follows such a stream is at the next owner's, where the outcome tells it all.
"""

from __future__ import annotations

from kelpie.actors.hub import EventHub
from kelpie.actors.ownership import Ownership
from kelpie.core.errors import FencedError
from kelpie.core.ids import ActorId
from kelpie.effects.model import EffectRecord
from kelpie.storage.protocol import EventStore
from kelpie.storage.records import StreamChunk


class StreamLog:
    """The writer of one attempt's stream."""

    __slots__ = ("_actor", "_hub", "_ownership", "_record", "_sequence", "_store")

    def __init__(
        self,
        store: EventStore,
        ownership: Ownership,
        hub: EventHub,
        actor: ActorId,
        record: EffectRecord,
    ) -> None:
        self._store = store
        self._ownership = ownership
        self._hub = hub
        self._actor = actor
        self._record = record
        self._sequence = 0

    async def write(self, kind: str, body: bytes) -> None:
        """Keep one piece, and wake who follows; harmless when the actor's shard is not owned."""
        shard, record = self._actor.shard, self._record
        if not self._ownership.owns(shard):
            return
        chunks: list[StreamChunk] = []
        if self._sequence == 0 and record.attempt > 1:
            self._sequence += 1
            first = StreamChunk(record.effect_id, record.attempt, self._sequence, "restart", b"")
            chunks.append(first)
        self._sequence += 1
        chunks.append(StreamChunk(record.effect_id, record.attempt, self._sequence, kind, body))
        assert chunks[-1].sequence == self._sequence, "pieces are numbered without gaps"
        epoch = self._ownership.epoch(shard)
        try:
            await self._store.stream_append(self._actor, epoch, chunks)
        except FencedError:
            self._ownership.fence(shard, epoch)
            return
        self._hub.announce(self._actor)
        assert self._sequence >= len(chunks)
