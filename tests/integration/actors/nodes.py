"""Several nodes over one real store, in virtual time: each sees the work of its own shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from kelpie.actors.engine import Engine
from kelpie.actors.hub import EventHub
from kelpie.actors.outbox import OutboxPump
from kelpie.actors.ownership import Ownership
from kelpie.actors.pauses import Pauses
from kelpie.actors.pump import PumpDeps
from kelpie.actors.reminders import ReminderPump
from kelpie.actors.sessions import EndedSessions
from kelpie.actors.submissions import Submissions
from kelpie.actors.supervisor import Supervisor
from kelpie.core.errors import NotOwnerError
from kelpie.core.ids import ActorId
from kelpie.core.limits import INTEGER_MAX, SHARD_COUNT
from kelpie.effects.dispatcher import Dispatcher
from kelpie.effects.executor import Executor
from kelpie.sim.clock import SimulatedClock
from kelpie.sim.rng import SimulatedRng
from kelpie.sim.telemetry import RecordedTelemetry
from kelpie.storage.cluster import NodeRow
from kelpie.storage.protocol import Store
from kelpie.storage.records import (
    Commit,
    CommitReceipt,
    EffectRow,
    ReminderRow,
    ShardGrant,
    StoredMessage,
    StoredReply,
    StreamChunk,
)
from kelpie.storage.sqlite.store import SqliteStore

EVERYTHING = 1_000


class SharedStore:
    """One node's view of a store that several share; ``gate`` stands before commits' outcomes."""

    def __init__(self, store: SqliteStore, session: str) -> None:
        self._store = store
        self.session = session
        self.held = False
        self.owned: dict[int, int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.pause_gate = asyncio.Event()
        self.pause_gate.set()
        self.written: list[Commit] = []
        self.hidden: set[int] = set()  # messages of transactions that are still open
        self.replies_read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def grants(self) -> Sequence[ShardGrant]:
        return ()

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        return asyncio.ensure_future(self._commit(commit))

    async def _commit(self, commit: Commit) -> CommitReceipt:
        await self.gate.wait()
        receipt = await self._store.commit(commit)
        self.written.append(commit)
        return receipt

    async def outbox(self, after_id: int, limit: int) -> list[StoredMessage]:
        rows = await self._store.outbox(after_id, EVERYTHING)
        shown = [row for row in rows if row.message_id not in self.hidden]
        return [row for row in shown if row.receiver.shard in self.owned][:limit]

    async def everything(self) -> list[StoredMessage]:
        return await self._store.outbox(0, EVERYTHING)

    async def horizon(self) -> int:
        return min(self.hidden, default=INTEGER_MAX) - 1

    async def reply(self, actor: ActorId, method: str, key: str) -> StoredReply | None:
        self.replies_read += 1
        return await self._store.reply(actor, method, key)

    async def reminders_due(self, now_ms: int, _: int, **__: Any) -> list[ReminderRow]:
        rows = await self._store.reminders_due(now_ms, EVERYTHING)
        return [row for row in rows if row.actor.shard in self.owned]

    async def effects_open(self, after_id: str, limit: int) -> list[EffectRow]:
        rows = await self._store.effects_open(after_id, EVERYTHING)
        return [row for row in rows if row.actor.shard in self.owned][:limit]

    async def pauses(self) -> Any:
        await self.pause_gate.wait()
        return await self._store.pauses()

    async def stream_append(self, actor: ActorId, epoch: int, chunks: Sequence[StreamChunk]) -> Any:
        return await self._store.stream_append(actor, epoch, chunks)


class SharedNode:
    """One node: an engine with its pumps, over its view of the store."""

    def __init__(
        self,
        name: str,
        store: SqliteStore,
        machines: Sequence[Any],
        executors: Sequence[Executor],
        *,
        is_ordered: bool = False,
    ) -> None:
        self.name = name
        self.clock = SimulatedClock()
        self.telemetry = RecordedTelemetry()
        self.store = SharedStore(store, f"session-{name}")
        self.ownership = Ownership()
        self.supervisor = Supervisor(clock=self.clock, telemetry=self.telemetry)
        shown = cast("Store", self.store)
        self.engine = Engine(
            store=shown,
            ownership=self.ownership,
            clock=self.clock,
            rng=SimulatedRng(len(name)),
            telemetry=self.telemetry,
            supervisor=self.supervisor,
        )
        for machine in machines:
            self.engine.register(machine)
        self.others: list[SharedNode] = []
        self.dispatcher = Dispatcher(
            store=shown,
            runtime=Anywhere(self),
            listen=self.engine.listen,
            ownership=self.ownership,
            sessions=EndedSessions(store.session_ended, clock=self.clock),
            hub=EventHub(),
            executors=executors,
            clock=self.clock,
            telemetry=self.telemetry,
            supervisor=self.supervisor,
        )
        deps = PumpDeps(
            store=shown,
            runtime=self.engine,
            clock=self.clock,
            telemetry=self.telemetry,
            supervisor=self.supervisor,
            is_one_of_several=True,
            horizon=self.store.horizon if is_ordered else None,
        )
        self.outbox = OutboxPump(deps)
        self.calls = Submissions(deps, self.outbox, rng=SimulatedRng(7))
        self.pauses = Pauses(deps)
        self.reminders = ReminderPump(deps)

    async def start(self) -> None:
        row = NodeRow(self.store.session, self.name, "", "running", 0, 5_000, False, False, 1, 0)
        await self.store.join(row)
        self.outbox.start()
        self.reminders.start()
        await self.dispatcher.start()

    async def gain(self, *shards: int) -> None:
        """Claim free shards in the store, then serve them."""
        view = await self.store.cluster()
        free = [ShardGrant(each.shard, each.epoch) for each in view.shards if not each.session]
        wished = [grant for grant in free if grant.shard in shards]
        taken = await self.store.claim(self.store.session, wished)
        assert {grant.shard for grant in taken} == set(shards), "they were free"
        self.store.owned.update({grant.shard: grant.epoch for grant in taken})
        self.ownership.gain(taken)

    async def give(self, *shards: int) -> None:
        """Hand shards over: bring them to rest, lose them, release them in the store."""
        await self.engine.hand_over(shards)
        self.lose(*shards)
        await self.free(*shards)

    def lose(self, *shards: int) -> None:
        """Lose shards here; the store does not know of it yet."""
        self.ownership.lose(shards)

    async def free(self, *shards: int) -> None:
        """Release shards in the store, whatever this node believes."""
        grants = [ShardGrant(shard, self.store.owned.pop(shard)) for shard in shards]
        await self.store.release_shards(self.store.session, grants)

    async def end(self) -> None:
        """End the session in the store, as others do with a node that is silent."""
        assert await self.store.end_session(self.store.session, None, now_ms=self.clock.now_ms())
        self.store.owned.clear()

    async def call(self, actor: ActorId, message: Any, **options: Any) -> Any:
        return await self.engine.call(actor, message, principal="test", **options)

    async def close(self) -> None:
        self.engine.check_invariants()
        self.dispatcher.check_invariants()
        self.store.gate.set()
        await self.dispatcher.drain(0)
        await self.engine.drain()
        await self.supervisor.close()


class Anywhere:
    """Calls that reach whichever node serves the actor. Implements `Calls`, as a router does."""

    def __init__(self, node: SharedNode) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node.engine, name)

    async def call(self, actor: ActorId, message: Any, **options: Any) -> Any:
        for node in (self._node, *self._node.others):
            if node.ownership.serves(actor.shard):
                return await node.engine.call(actor, message, **options)
        raise NotOwnerError("nobody serves it now", shard=actor.shard, owner="")


@asynccontextmanager
async def nodes(
    path: Path,
    *names: str,
    machines: Callable[[], Sequence[Any]],
    executors: Any = (),
    is_ordered: bool = False,
) -> AsyncGenerator[list[SharedNode]]:
    """Open nodes that own nothing yet; at the end each is drained."""
    async with AsyncExitStack() as stack:
        store = await SqliteStore.open(
            path / "kelpie.db", clock=SimulatedClock(), rng=SimulatedRng(1), node=""
        )
        stack.push_async_callback(store.close)
        opened = [
            SharedNode(name, store, machines(), executors[index : index + 1], is_ordered=is_ordered)
            for index, name in enumerate(names)
        ]
        for node in opened:
            node.others = [other for other in opened if other is not node]
            stack.push_async_callback(node.close)
            await node.start()
        yield opened


ALL_SHARDS = range(SHARD_COUNT)
