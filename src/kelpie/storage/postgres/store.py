"""The shared engine: the whole Store protocol, and a cluster's rows, over one PostgreSQL database.

A fixed handful of connections however many actors there are: some write, each with a queue of its
own, some read, one changes sessions and shards. The object belongs to the event loop that opened
it. Bodies larger than rows lie in blobs, in a directory that every node sees.

Invariants: a shard's writes take one lane; what a resolved commit wrote, the next read sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from kelpie.core.errors import KelpieError, StoreError, UnavailableError
from kelpie.core.ids import ActorId, Tenant, derive_uuid
from kelpie.core.limits import (
    DATABASE_WRITERS,
    FAILURE_BYTES_MAX,
    LEASE_TTL_MS,
    SHARD_COUNT,
)
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.storage.blobs import BlobStore
from kelpie.storage.bounds import (
    body_bytes,
    commit_bytes,
    require_integers,
    stream_bytes,
    submission_bytes,
    text_bytes,
)
from kelpie.storage.cluster import NODE_NAME_DEFAULT, NodeRow
from kelpie.storage.postgres.check import check_store
from kelpie.storage.postgres.control import Control
from kelpie.storage.postgres.driver import (
    CLIENT_TIMEOUT_S,
    CONTROL_SETTINGS,
    WRITER_SETTINGS,
    DriverError,
    ReaderPool,
    ServerConnection,
    connect,
    open_readers,
    translate_error,
)
from kelpie.storage.postgres.lane import Lane, Room, Single
from kelpie.storage.postgres.link import WriterLink
from kelpie.storage.postgres.nodes import PostgresNodes
from kelpie.storage.postgres.opening import prepare
from kelpie.storage.postgres.plan import Append, Member, Submit
from kelpie.storage.postgres.reads import PostgresReads
from kelpie.storage.postgres.singles import (
    BuryReminder,
    ChangePause,
    EndCall,
    FailMessage,
    Fence,
    ReleaseStore,
    ReviveMessage,
)
from kelpie.storage.protocol import Compaction
from kelpie.storage.records import (
    CallEnd,
    Commit,
    CommitReceipt,
    ReminderRow,
    ShardGrant,
    StoredCall,
    StoredPause,
    StreamChunk,
    Submission,
)
from kelpie.storage.soundness import CheckReport

T = TypeVar("T")


class _Parts(NamedTuple):
    """What opening gives."""

    pool: ReaderPool
    control: Control
    lanes: tuple[Lane, ...]
    blobs: BlobStore
    held: bool


class PostgresStore(PostgresNodes, PostgresReads):
    """A store in one database, for one node of those that share it.

    Use `open`, then `join` and `claim` shards, or `claim_all` when nobody else is there; `close` it
    in the loop that opened it.
    """

    __slots__ = ("_address", "_is_closed", "_name", "_parts", "_rng")

    def __init__(self, parts: _Parts, *, clock: Clock, rng: Rng, name: str, address: str) -> None:
        super().__init__(parts.pool, "", clock)
        self._parts = parts
        self._rng = rng
        self._name = name
        self._address = address
        self._is_closed = False
        parts.control.changed = self._note_shards

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        clock: Clock,
        rng: Rng,
        blobs_path: Path,
        address: str = "",
        name: str = NODE_NAME_DEFAULT,
    ) -> Self:
        """Connect, check the server and bring its schema up to date; own nothing yet.

        Args:
            dsn: The database: ``postgresql://user@host:port/database``.
            clock: Wall time for expiry, boot time for how long the database may stay away.
            rng: Makes ids.
            blobs_path: The directory of the blobs, which all nodes share.
            address: Where other nodes reach this one.
            name: What this node is called.

        Raises:
            ConfigError: The address is wrong, or the server would lose what it acknowledges.
            StoreVersionError: The schema is another program's, or newer than this program.
            StoreError: The server cannot be reached, or failed.
        """
        holder = derive_uuid(rng.bytes(16), 0)
        label = partial("kelpie {} {}".format, holder)
        first, held = await prepare(
            dsn,
            name=label("control"),
            now_ms=clock.now_ms(),
            incarnation=derive_uuid(rng.bytes(16), 0),
        )
        control = Control(
            partial(connect, dsn, name=label("control"), settings=CONTROL_SETTINGS), first
        )
        lanes: list[Lane] = []
        pool: ReaderPool | None = None
        try:
            pool = await open_readers(dsn, name=label("reader"))
            room = Room()
            for writer in range(DATABASE_WRITERS):
                link = WriterLink(
                    partial(_connect_writer, dsn), clock=clock, holder=holder, writer=writer
                )
                await link.open()
                shards = partial(_shards_of, control, writer)
                lanes.append(Lane(link, room, shards=shards))
        except BaseException as error:
            await _let_go(control, lanes, pool)
            if isinstance(error, DriverError):
                raise translate_error(error, "the store") from error
            raise
        parts = _Parts(pool, control, tuple(lanes), BlobStore(blobs_path), held)
        return cls(parts, clock=clock, rng=rng, name=name, address=address)

    @property
    def blobs(self) -> BlobStore:
        """The store's blobs. Put one before the commit that names it."""
        return self._parts.blobs

    @property
    def session(self) -> str:
        """The session that joined last; empty before."""
        return self._session

    @property
    def held(self) -> bool:
        """Whether the store waits for a release after a restore: effects and timers rest."""
        return self._parts.held

    @property
    def failure(self) -> KelpieError | None:
        """Why nothing is written any more; None while all is well."""
        return StoreError("the store is closed; open it again") if self._is_closed else None

    def grants(self) -> Sequence[ShardGrant]:
        """Return the shards this session owns, with their epochs, as far as it did it itself."""
        return self._control.grants()

    async def claim_all(self) -> Sequence[ShardGrant]:
        """Join as a running node, unless it has, and own every shard that is free.

        For a node that is alone.

        Raises:
            ConflictError: A living session has the node's name.
        """
        if not self._control.is_living:
            await self.join(
                NodeRow(
                    session=f"session-{derive_uuid(self._rng.bytes(16), 0)}",
                    name=self._name,
                    address=self._address,
                    state="running",
                    renewals=0,
                    ttl_ms=LEASE_TTL_MS,
                    is_cordoned=False,
                    is_draining=False,
                    started_ms=self._clock.now_ms(),
                    ended_ms=0,
                )
            )
        view = await self.cluster()
        free = [ShardGrant(row.shard, row.epoch) for row in view.shards if not row.session]
        await self.claim(self.session, free)
        return self.grants()

    # --- writes ---------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Queue ``commit``; the awaitable resolves once it is durable.

        Cancelling the awaitable does not take the commit back. A database that goes away in the
        middle is waited for, and asked what it kept.

        Raises (when awaited):
            FencedError: The shard's epoch has moved.
            VersionConflictError: Version or incarnation is not the expected one.
            MessageGoneError: The consumed message or reminder does not exist any more.
            ConflictError: An effect or list item belongs to another actor.
            KeyReusedError: The idempotency key has a living reply.
            LimitExceededError: The commit is larger than a transaction may be.
            InvalidFieldError: A text or an integer cannot be stored.
            OverloadedError: Too many commits wait for the database.
            DiskFullError: No space; nothing was kept.
            CommitUnknownError: The database stayed away too long after it was sent.
            StoreError: Nothing was kept: the store is closed, or the database failed.
        """
        try:
            size_bytes = commit_bytes(commit)
        except KelpieError as error:
            return _failed(error)
        return self._submit(commit.shard, commit, size_bytes)

    def stream_append(
        self, actor: ActorId, epoch: int, chunks: Sequence[StreamChunk]
    ) -> Awaitable[None]:
        """Queue stream chunks; fenced like a commit, durable when the awaitable resolves.

        Raises (when awaited):
            NotFoundError: The actor does not exist.
            ConflictError: A chunk does not come after those of its attempt.
            FencedError: The shard's epoch has moved; and what `commit` raises about the database.
        """
        kept = tuple(chunks)
        try:
            require_integers("epoch", epoch)
            size_bytes = stream_bytes(kept)
        except KelpieError as error:
            return _failed(error)
        return self._submit(actor.shard, Append(actor, epoch, kept), size_bytes)

    async def outbox_failed(
        self, message_id: int, *, error: str, retry_at_ms: int | None, now_ms: int
    ) -> None:
        """Count a failed delivery; with ``retry_at_ms`` None the message becomes a dead letter.

        Harmless when the message was consumed meanwhile, or is another node's.
        """
        require_integers("message", message_id, retry_at_ms or 0, now_ms)
        size_bytes = text_bytes("error", error, FAILURE_BYTES_MAX)
        shard = await self._shard_of("outbox", message_id)
        if shard is None:
            return
        single = FailMessage(self._fence(shard), message_id, error, retry_at_ms, now_ms)
        await self._submit(shard, single, size_bytes)

    async def bury_reminder(
        self, reminder: ReminderRow, *, attempts: int, error: str, now_ms: int
    ) -> None:
        """Make a reminder a dead letter from its actor to itself, with a message's new id.

        Harmless when it fired, was cancelled or moved meanwhile, or is another node's.
        """
        require_integers("reminder", reminder.due_ms, attempts, now_ms)
        size_bytes = text_bytes("error", error)
        shard = reminder.actor.shard
        single = BuryReminder(self._fence(shard), reminder, attempts, error, now_ms)
        await self._submit(shard, single, size_bytes)

    async def replay_dead_letter(self, tenant: Tenant, message_id: int) -> int:
        """Move a dead letter back into the outbox, with all its attempts; return its new id.

        Raises:
            NotFoundError: The tenant has no such dead letter.
        """
        require_integers("message", message_id)
        shard = await self._shard_of("dead_letters", message_id)
        single = ReviveMessage(tenant, message_id, self._clock.now_ms())
        revived_id: int = await self._submit(shard or 0, single, 0)
        assert revived_id > message_id, "ids grow"
        return revived_id

    async def submit_call(self, submission: Submission, *, epoch: int) -> StoredCall:
        """Keep a call and its message; durable when it returns.

        A key that came before with the same request gives the call of that time.

        Raises:
            FencedError: The shard's epoch has moved.
            KeyReusedError: The key came before with another request.
            OverloadedError: The tenant has too many calls that have not ended.
        """
        size_bytes = submission_bytes(submission)
        shard = submission.actor.shard
        stored: StoredCall = await self._submit(shard, Submit(submission, epoch), size_bytes)
        assert stored.request == submission.request, "a key stands for one request"
        return stored

    async def end_call(self, message_id: int, end: CallEnd, *, error: str = "") -> bool:
        """End the call of a waiting message without a turn; return whether it was pending.

        The message goes; that of a ``dead`` call becomes a dead letter with ``error``.

        Raises:
            FencedError: This session does not own the receiver's shard.
        """
        require_integers("call", message_id, end.at_ms, end.expires_ms)
        size_bytes = body_bytes("call", end.body) + text_bytes("error", error, FAILURE_BYTES_MAX)
        shard = await self._shard_of("outbox", message_id)
        if shard is None:
            return False
        single = EndCall(self._fence(shard), message_id, end, error)
        was_pending: bool = await self._submit(shard, single, size_bytes)
        return was_pending

    async def pause_actor(self, pause: StoredPause, *, epoch: int) -> bool:
        """Note a pause, and return whether the actor was not paused before.

        Raises:
            FencedError: The shard's epoch has moved.
            OverloadedError: Too many actors are paused.
        """
        return await self._change_pause(pause, epoch, is_pause=True)

    async def resume_actor(self, pause: StoredPause, *, epoch: int) -> bool:
        """Note the end of a pause, and return whether there was one.

        Raises:
            FencedError: The shard's epoch has moved.
        """
        return await self._change_pause(pause, epoch, is_pause=False)

    async def _change_pause(self, pause: StoredPause, epoch: int, *, is_pause: bool) -> bool:
        size_bytes = text_bytes("principal", pause.principal)
        shard = pause.actor.shard
        single = ChangePause(Fence(shard, epoch), pause, is_pause)
        has_changed: bool = await self._submit(shard, single, size_bytes)
        return has_changed

    async def release(self) -> None:
        """End the held state; harmless when it has ended."""
        await self._submit(0, ReleaseStore(self._clock.now_ms()), 0)
        self._parts = self._parts._replace(held=False)
        assert not self.held, "a release is for good"
        self.check_invariants()

    # --- care -----------------------------------------------------------------------------------

    async def check(self) -> CheckReport:
        """Read everything, compare every checksum and verify every audit chain.

        Raises:
            StoreError: The server failed.
        """
        try:
            return await check_store(self._parts.pool)
        except DriverError as error:
            raise translate_error(error, "the store") from error

    async def backup(self, target: Path) -> None:
        """Refuse: a database is backed up with its own tools.

        Raises:
            UnavailableError: Always; says what to do.
        """
        message = f"{target}: back up the database with pg_dump, and copy the blobs' directory"
        raise UnavailableError(message, target=str(target))

    async def compact(self) -> Compaction:
        """Refuse: the server gives space back by itself.

        Raises:
            UnavailableError: Always; says what to do.
        """
        message = "PostgreSQL gives space back by itself (autovacuum); there is nothing to do"
        raise UnavailableError(message)

    async def close(self) -> None:
        """Finish queued commits, end the session, then let go; harmless when done before."""
        if self._is_closed:
            return
        self._is_closed = True
        parts = self._parts
        try:
            for lane in parts.lanes:
                await lane.close()
            if parts.control.is_living:
                # A database that is away ends the session by itself, when its lease is over.
                with suppress(StoreError):
                    await self.end_session(self.session, None, now_ms=self._clock.now_ms())
        finally:
            await _let_go(parts.control, parts.lanes, parts.pool)
        assert all(lane.waiting == 0 for lane in parts.lanes), "what was queued has its outcome"
        self.check_invariants()

    def check_invariants(self) -> None:
        """Assert what always holds between two callbacks."""
        self._control.check_invariants()
        for lane in self._parts.lanes:
            lane.check_invariants()
        assert self._session == self._control.session, "work is read for the session that joined"

    @property
    def _control(self) -> Control:
        return self._parts.control

    def _submit(self, shard: int, member: Member | Single, size_bytes: int) -> asyncio.Future[Any]:
        lanes = self._parts.lanes
        return lanes[shard % len(lanes)].submit(member, size_bytes)

    def _fence(self, shard: int) -> Fence:
        return Fence(shard, self._control.epoch(shard))

    async def _shard_of(self, table: str, message_id: int) -> int | None:
        """Return the receiver's shard of a message, None when there is no such message."""
        query = f"SELECT receiver_shard FROM {table} WHERE message_id = ?"  # noqa: S608  constants
        row = await self._fetch_one(query, (message_id,), f"message {message_id}")
        return None if row is None else int(row[0])

    def _note_shards(self) -> None:
        """Read the work of the session, and remove what deleted actors left in its new shards."""
        self._session = self._control.session
        for lane in self._parts.lanes if self._control.shards() else ():
            if not self._is_closed:
                lane.clean()


def _shards_of(control: Control, writer: int) -> list[int]:
    return [shard for shard in control.shards() if shard % DATABASE_WRITERS == writer]


def _connect_writer(dsn: str, name: str) -> Awaitable[ServerConnection]:
    return connect(dsn, name=name, settings=WRITER_SETTINGS)


async def _let_go(control: Control, lanes: Sequence[Lane], pool: ReaderPool | None) -> None:
    """Close whatever was opened."""
    for lane in lanes:
        await lane.link.close()
    await control.close()
    if pool is not None:
        try:
            await asyncio.wait_for(pool.close(), CLIENT_TIMEOUT_S)
        except DriverError:
            pool.terminate()


def _failed(error: KelpieError) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


assert DATABASE_WRITERS <= SHARD_COUNT, "every lane has shards"
