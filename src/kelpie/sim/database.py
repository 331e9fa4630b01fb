"""A database that several simulated nodes share: a store on a machine of its own, over the network.

`serve_database` is the program of that machine. `SharedStore` is what a node has of it: the whole
Store protocol, each call an exchange over the links, so it is late, lost or answered after the
caller has given up. It keeps the promises that an engine's client makes: commits go over one
connection in order; after a broken connection nothing of the old one takes effect any more, and
what became of the batch that was on its way is read from the database before anything else is sent.

Owns nothing of the product's logic: who may write is decided by the store's own statements.

Invariants: one batch of a node is on its way at a time; a commit takes effect at most once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kelpie.core.errors import BusyError, CommitUnknownError, KelpieError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import INTEGER_MAX
from kelpie.ports.network import NetworkError
from kelpie.storage.blobs import BlobStore
from kelpie.storage.cluster import NodeRow
from kelpie.storage.records import (
    AuditRecord,
    Commit,
    CommitReceipt,
    ReminderCursor,
    ReminderRow,
    ShardGrant,
    StoredMessage,
    StreamChunk,
)

if TYPE_CHECKING:
    from kelpie.sim.host import SimulatedHost

PATIENCE_S: Final = 3.0  # a statement's timeout
UNKNOWN_AFTER_S: Final = 15.0  # of a batch whose outcome cannot be read
RETRY_S: Final = 0.2
BATCH_MAX: Final = 64
CLUSTER_SECRET: Final = b"of the simulated cluster"

Outcome = CommitReceipt | KelpieError | None
"""What became of one commit; None while it has not happened."""


@dataclass(slots=True)
class Batch:
    """Commits of one node that were sent together, and what became of each."""

    client: str
    number: int
    session: str
    commits: tuple[Commit, ...]
    outcomes: list[Outcome] = field(default_factory=list[Outcome])


class DatabaseService:
    """The running database: its store, and what became of each client's newest batch.

    The batches outlive the program, as rows of a table do; what a program that died knew of them is
    what its store says when the next one begins.
    """

    def __init__(self, store: Any, batches: dict[str, Batch]) -> None:
        self.store = store
        self._batches = batches
        self._connections: dict[str, int] = {}
        self._busy: dict[str, asyncio.Event] = {}

    @property
    def has_failed(self) -> bool:
        """Whether the store has stopped and the program must be started anew."""
        return self.store.failure is not None

    async def recover(self) -> None:
        """Find out what became of commits whose program died; nobody else has written since."""
        for batch in self._batches.values():
            for index, commit in enumerate(batch.commits):
                if batch.outcomes[index] is None and await self.store.has_landed(commit):
                    text = f"{commit.actor} was written as the database stopped; load it again"
                    batch.outcomes[index] = CommitUnknownError(text)

    async def connect(self, client: str, connection: int) -> Batch | None:
        """End the client's earlier connections for good, and return its newest batch, settled."""
        if connection <= self._connections.get(client, 0):
            raise NetworkError(f"{client} has a newer connection", sent=True)
        self._connections[client] = connection
        batch = self._batches.get(client)
        if batch is not None and client in self._busy:
            await self._busy[client].wait()
        assert client not in self._busy, "a batch that is asked about is settled"
        assert self._connections[client] >= connection, "connections are counted"
        return batch

    async def apply(self, batch: Batch, connection: int) -> Batch:
        """Carry out a batch and return it with what became of each commit.

        Raises:
            NetworkError: It came over a connection that has ended, or never began here.
        """
        if self._connections.get(batch.client) != connection:
            raise NetworkError(f"{batch.client} has another connection", sent=True)
        assert batch.client not in self._busy, "one batch of a node is on its way at a time"
        done = self._busy[batch.client] = asyncio.Event()
        batch.outcomes = [None] * len(batch.commits)
        self._batches[batch.client] = batch
        waiting = [self.store.commit_for(batch.session, commit) for commit in batch.commits]
        for index, future in enumerate(waiting):
            try:
                batch.outcomes[index] = await future
            except KelpieError as error:
                batch.outcomes[index] = error
        del self._busy[batch.client]
        done.set()
        assert None not in batch.outcomes, "every commit comes to something"
        return batch


@asynccontextmanager
async def serve_database(host: SimulatedHost) -> AsyncGenerator[DatabaseService]:
    """Run the database on a machine of its own."""
    store = await host.open_database()
    service = DatabaseService(store, host.batches)
    await service.recover()
    try:
        yield service
    finally:
        await store.close()


class SharedStore:
    """A node's side of the database.

    Attributes:
        session: The session that joined last; empty before.
    """

    held = False
    failure: KelpieError | None = None

    def __init__(
        self, database: SimulatedHost, *, source: str, client: str, blobs: BlobStore
    ) -> None:
        self.session = ""
        self.blobs = blobs
        self._database = database
        self._source = source
        self._client = client
        self._connection = 0
        self._is_connected = False
        self._number = 0
        self._grants: dict[int, int] = {}
        self._queue: deque[tuple[Commit, asyncio.Future[CommitReceipt]]] = deque()
        self._writer: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Return a method of the database's store, as an exchange."""
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._ask, name)

    # --- what belongs to this node --------------------------------------------------------------

    def grants(self) -> Sequence[ShardGrant]:
        """Return the shards that this node's session owns, as far as it knows."""
        return [ShardGrant(*each) for each in sorted(self._grants.items())]

    async def join(self, node: NodeRow) -> None:
        """Begin a session; this store's work is its own from now on."""
        assert node.session != self.session, "a session is joined once"
        await self._ask("join", node)
        self.session = node.session
        self._grants.clear()
        assert not self._grants, "a new session owns nothing"

    async def claim(self, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
        """Own free shards; remember those whose work this node reads."""
        taken: list[ShardGrant] = await self._ask("claim", session, shards)
        if session == self.session:
            self._grants.update(taken)
        assert len(taken) <= len(shards), "nothing else was asked for"
        assert all(grant.epoch > 0 for grant in taken), "an epoch counts owners"
        return taken

    async def release_shards(self, session: str, shards: Sequence[ShardGrant]) -> None:
        """Let go of shards."""
        for grant in shards:
            self._grants.pop(grant.shard, None)
        assert not any(grant.shard in self._grants for grant in shards)
        await self._ask("release_shards", session, shards)
        assert session, "who lets go has a session"

    async def message_horizon(self) -> int:
        """Return an id beyond all others: this database's ids are visible in their order."""
        return INTEGER_MAX

    async def cluster_identity(self, secret: bytes) -> tuple[str, bytes]:
        """Return the cluster's id and secret, which the machine keeps for its nodes."""
        assert secret, "a secret is drawn"
        return "simulated", CLUSTER_SECRET

    async def end_session(self, session: str, renewals: int | None, *, now_ms: int) -> bool:
        """End a session; this node's own owns nothing from the moment it is asked."""
        assert session, "a session has a name"
        if session == self.session:
            self._grants.clear()
        ended: bool = await self._ask("end_session", session, renewals, now_ms=now_ms)
        return ended

    async def outbox(self, after_id: int, limit: int) -> list[StoredMessage]:
        """Return waiting messages for actors of this node's shards."""
        rows: list[StoredMessage] = []
        while len(rows) < limit:
            page: list[StoredMessage] = await self._ask("outbox", after_id, limit)
            rows.extend(row for row in page if row.receiver.shard in self._grants)
            if len(page) < limit:
                break
            after_id = page[-1].message_id
        return rows[:limit]

    async def effects_open(self, after_id: str, limit: int) -> list[Any]:
        """Return open effects of actors of this node's shards."""
        rows: list[Any] = []
        while len(rows) < limit:
            page = await self._ask("effects_open", after_id, limit)
            rows.extend(row for row in page if row.actor.shard in self._grants)
            if len(page) < limit:
                break
            after_id = page[-1].effect_id
        return rows[:limit]

    async def reminders_due(
        self, now_ms: int, limit: int, *, after: ReminderCursor
    ) -> list[ReminderRow]:
        """Return due reminders of actors of this node's shards."""
        rows: list[ReminderRow] = []
        while len(rows) < limit:
            page: list[ReminderRow] = await self._ask("reminders_due", now_ms, limit, after=after)
            rows.extend(row for row in page if row.actor.shard in self._grants)
            if len(page) < limit:
                break
            after = ReminderCursor(page[-1].due_ms, str(page[-1].actor), page[-1].name)
        return rows[:limit]

    async def audit(self, tenant: Tenant) -> AsyncIterator[AuditRecord]:
        """Yield the tenant's audit records."""
        for record in await self._ask("audit_rows", tenant):
            yield record

    async def audit_chain(self, shard: int) -> AsyncIterator[AuditRecord]:
        """Yield one chain."""
        for record in await self._ask("chain_rows", shard):
            yield record

    async def close(self) -> None:
        """Finish queued commits."""
        if self._writer is not None:
            await self._writer

    # --- one exchange ---------------------------------------------------------------------------

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Have the database's store do one thing.

        Raises:
            BusyError: It did not answer in time; whether it was done is not known.
        """
        work = partial(_call, method, args, kwargs)
        try:
            return await self._exchange(method, work)
        except NetworkError as error:
            raise BusyError(f"the database does not answer ({error.message})") from None

    async def _exchange(self, title: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
        return await self._database.consult(self._source, title, work, patience_s=PATIENCE_S)

    def stream_append(
        self, actor: ActorId, epoch: int, chunks: Sequence[StreamChunk]
    ) -> Awaitable[None]:
        """Append to a stream."""
        return self._ask("stream_append", actor, epoch, tuple(chunks))

    # --- commits --------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Queue a commit; it goes with the next batch."""
        future: asyncio.Future[CommitReceipt] = asyncio.get_running_loop().create_future()
        assert self.session, "who commits has a session"
        self._queue.append((commit, future))
        if self._writer is None or self._writer.done():
            loop = asyncio.get_running_loop()
            self._writer = loop.create_task(self._write(), name="shared-store.writer")
        assert not self._writer.done(), "what is queued is sent"
        return future

    async def _write(self) -> None:
        while self._queue:
            members = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_MAX))]
            outcomes = await self._send(tuple(commit for commit, _ in members))
            for (_, future), outcome in zip(members, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, KelpieError):
                    future.set_exception(outcome)
                else:
                    assert outcome is not None, "a batch is settled as a whole"
                    future.set_result(outcome)

    async def _send(self, commits: tuple[Commit, ...]) -> list[Outcome]:
        """Return what became of the commits: from the answer, or from what the database kept."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + UNKNOWN_AFTER_S
        outcomes: list[Outcome] = [None] * len(commits)
        sent: tuple[int, list[int]] | None = None  # the batch whose outcome nobody told, by index
        while loop.time() < give_up_s:
            try:
                if not self._is_connected:
                    kept = await self._connect()
                    if sent is not None and kept is not None and kept.number == sent[0]:
                        _settle(outcomes, sent[1], kept)
                left = [index for index, outcome in enumerate(outcomes) if outcome is None]
                if not left:
                    return outcomes
                batch = self._next_batch(tuple(commits[index] for index in left))
                sent = (batch.number, left)
                work = partial(_apply, batch, self._connection)
                _settle(outcomes, left, await self._exchange("commit", work))
            except NetworkError:
                self._is_connected = False
                await asyncio.sleep(RETRY_S)
        unknown = CommitUnknownError("the database did not say what became of it; load it again")
        return [unknown if outcome is None else outcome for outcome in outcomes]

    def _next_batch(self, commits: tuple[Commit, ...]) -> Batch:
        self._number += 1
        return Batch(self._client, self._number, self.session, commits)

    async def _connect(self) -> Batch | None:
        """Begin a connection; nothing of earlier ones takes effect once this returns."""
        self._connection += 1
        work = partial(_connect, self._client, self._connection)
        kept: Batch | None = await self._exchange("connect", work)
        self._is_connected = True
        return kept


def _settle(outcomes: list[Outcome], indexes: Sequence[int], batch: Batch) -> None:
    for index, outcome in zip(indexes, batch.outcomes, strict=True):
        outcomes[index] = outcome


async def _call(method: str, args: Any, kwargs: Any, service: DatabaseService) -> Any:
    return await getattr(service.store, method)(*args, **kwargs)


async def _apply(batch: Batch, connection: int, service: DatabaseService) -> Batch:
    return await service.apply(batch, connection)


async def _connect(client: str, connection: int, service: DatabaseService) -> Batch | None:
    return await service.connect(client, connection)
