"""The embedded engine: the whole Store protocol over one SQLite file and a directory of blobs.

One connection writes, in batches, in an executor's single thread; another reads, on the loop's
thread. The object belongs to the event loop that opened it.

Invariants: while it is open for writing, no other process can write to the file; what a resolved
commit wrote, the next read sees.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path
from typing import TypeVar

from kelpie.core.errors import KelpieError, StoreError, StoreHeldError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import COMPACT_SLICE_PAGES, FAILURE_BYTES_MAX
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.storage.blobs import BlobStore, Swept, blobs_path
from kelpie.storage.bounds import (
    body_bytes,
    commit_bytes,
    require_integers,
    stream_bytes,
    submission_bytes,
    text_bytes,
)
from kelpie.storage.cluster import NODE_NAME_DEFAULT
from kelpie.storage.protocol import Compaction, StoreStats
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
from kelpie.storage.sqlite import calls, pauses, rows
from kelpie.storage.sqlite.backup import write_backup
from kelpie.storage.sqlite.batch import Work
from kelpie.storage.sqlite.check import (
    EngineReport,
    check_store,
    read_stats,
    report_engine,
    require_compactable,
)
from kelpie.storage.sqlite.engine import checkpoint, translate_error
from kelpie.storage.sqlite.moves import SqliteMoves
from kelpie.storage.sqlite.names import find_named
from kelpie.storage.sqlite.nodes import SqliteNodes
from kelpie.storage.sqlite.opening import (
    Holder,
    Opened,
    end_session,
    open_for_reading,
    open_for_writing,
)
from kelpie.storage.sqlite.transaction import Transaction
from kelpie.storage.sqlite.writer import GroupWriter

T = TypeVar("T")


class SqliteStore(SqliteNodes, SqliteMoves):
    """A store in one file. Use `open`; `close` it in the loop that opened it."""

    __slots__ = (
        "_blobs",
        "_executor",
        "_grants",
        "_held",
        "_opened",
        "_session",
        "_writer",
    )

    def __init__(
        self, path: Path, opened: Opened, executor: ThreadPoolExecutor, clock: Clock
    ) -> None:
        super().__init__(path, opened.reader, clock)
        self._opened: Opened | None = opened
        self._executor = executor
        self._session = opened.session if opened.grants else ""
        self._grants = opened.grants
        self._held = opened.held
        self._blobs = BlobStore(blobs_path(path))
        self._writer = GroupWriter(opened.writer, executor) if opened.writer else None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        rng: Rng,
        address: str = "",
        node: str = NODE_NAME_DEFAULT,
        read_only: bool = False,
        accept_loss: bool = False,
    ) -> SqliteStore:
        """Take the store at ``path``, migrate it and own all its shards; create it if absent.

        Args:
            path: The database file; lock file and blobs lie beside it.
            clock: Wall time for sessions and expiry, boot time for `engine_report`.
            rng: Makes the session's id.
            address: Where this process listens, for those who find the store held.
            node: The name of the node that has the store for itself. Empty opens it for nodes that
                join and claim their shards: no session, no shard, no earlier lease is ended.
            read_only: Read beside whoever holds it; takes no lock, owns no shard.
            accept_loss: Go on without a missing log, from the last checkpoint, held as after a
                restore. Harmless when nothing is missing.

        Raises:
            LogMissingError: It was not closed in order, and its log is gone.
            StoreHeldError: Another process holds it; the error names its pid and address.
            StoreVersionError: It is newer than this program, or not a store.
            CorruptionError: The engine found damage.
            NotFoundError: ``read_only`` and there is no store.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kelpie-store")
        job: Callable[[], Opened] = partial(open_for_reading, path)
        if not read_only:
            job = partial(
                open_for_writing,
                path,
                clock=clock,
                rng=rng,
                holder=Holder(address, node),
                accept_loss=accept_loss,
            )
        future = asyncio.get_running_loop().run_in_executor(executor, job)
        try:
            # Shielded, because a half-awaited opening would keep the lock.
            opened = await asyncio.shield(future)
        except BaseException:
            future.add_done_callback(_discard)
            executor.shutdown(wait=False)
            raise
        return cls(path, opened, executor, clock)

    @property
    def blobs(self) -> BlobStore:
        """The store's blobs. Put one before the commit that names it."""
        return self._blobs

    @property
    def session(self) -> str:
        """This holder's session id; a new one at every open, empty when it owns no shard."""
        return self._session

    @property
    def held(self) -> bool:
        """Whether the store waits for a release after a restore: effects and timers rest."""
        return self._held

    @property
    def failure(self) -> KelpieError | None:
        """Why nothing is written any more (an unknown commit outcome); None while all is well."""
        return self._writer.failure if self._writer else None

    def grants(self) -> Sequence[ShardGrant]:
        """Return the shards this session owns, with their epochs."""
        return self._grants

    # --- writes ---------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Queue ``commit``; the awaitable resolves once it is durable.

        Cancelling the awaitable does not take the commit back.

        Raises (when awaited):
            FencedError: The shard's epoch has moved.
            VersionConflictError: Version or incarnation is not the expected one.
            MessageGoneError: The consumed message or reminder does not exist any more.
            ConflictError: An effect or list item belongs to another actor.
            KeyReusedError: The idempotency key has a living reply.
            LimitExceededError: The commit is larger than a transaction may be.
            InvalidFieldError: A text or an integer cannot be stored.
            OverloadedError: Too many commits wait for the disk.
            DiskFullError: No space; nothing was kept.
            CommitUnknownError: The disk failed; the store writes nothing more until reopened.
            StoreError: Nothing was kept: the store is closed or stopped, or the engine failed.
        """
        try:
            size_bytes = commit_bytes(commit)
        except KelpieError as error:
            return _failed(error)
        return self._submit(commit, size_bytes)

    def stream_append(
        self, actor: ActorId, epoch: int, chunks: Sequence[StreamChunk]
    ) -> Awaitable[None]:
        """Queue stream chunks; fenced like a commit, durable when the awaitable resolves.

        Raises (when awaited):
            NotFoundError: The actor does not exist.
            ConflictError: A chunk does not come after those of its attempt.
            FencedError: The shard's epoch has moved; and what `commit` raises about the disk.
        """
        kept = tuple(chunks)
        try:
            require_integers("epoch", epoch)
            size_bytes = stream_bytes(kept)
        except KelpieError as error:
            return _failed(error)
        member = partial(rows.append_stream, actor=actor, epoch=epoch, chunks=kept)
        return self._submit(member, size_bytes)

    async def outbox_failed(
        self, message_id: int, *, error: str, retry_at_ms: int | None, now_ms: int
    ) -> None:
        """Count a failed delivery; with ``retry_at_ms`` None the message becomes a dead letter.

        Harmless when the message was consumed meanwhile.
        """
        require_integers("message", message_id, retry_at_ms or 0, now_ms)
        size_bytes = text_bytes("error", error, FAILURE_BYTES_MAX)
        await self._submit(
            partial(
                rows.fail_message,
                message_id=message_id,
                error=error,
                retry_at_ms=retry_at_ms,
                now_ms=now_ms,
            ),
            size_bytes,
        )

    async def bury_reminder(
        self, reminder: ReminderRow, *, attempts: int, error: str, now_ms: int
    ) -> None:
        """Make a reminder a dead letter from its actor to itself, with a message's new id.

        Harmless when it fired, was cancelled or moved meanwhile.
        """
        require_integers("reminder", reminder.due_ms, attempts, now_ms)
        size_bytes = text_bytes("error", error)
        bury = partial(
            rows.bury_reminder, reminder=reminder, attempts=attempts, error=error, now_ms=now_ms
        )
        await self._submit(bury, size_bytes)

    async def replay_dead_letter(self, tenant: Tenant, message_id: int) -> int:
        """Move a dead letter back into the outbox, with all its attempts; return its new id.

        Raises:
            NotFoundError: The tenant has no such dead letter.
        """
        require_integers("message", message_id)
        revive = partial(rows.revive_message, tenant=tenant, message_id=message_id)
        revived_id: int = await self._submit(revive, 0)
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
        member = partial(calls.submit_call, submission=submission, epoch=epoch)
        stored: StoredCall = await self._submit(member, size_bytes)
        assert stored.request == submission.request, "a key stands for one request"
        return stored

    async def end_call(self, message_id: int, end: CallEnd, *, error: str = "") -> bool:
        """End the call of a waiting message without a turn; return whether it was pending.

        The message goes; that of a ``dead`` call becomes a dead letter with ``error``.
        """
        require_integers("call", message_id, end.at_ms, end.expires_ms)
        size_bytes = body_bytes("call", end.body) + text_bytes("error", error, FAILURE_BYTES_MAX)
        member = partial(calls.end_call, message_id=message_id, end=end, error=error)
        was_pending: bool = await self._submit(member, size_bytes)
        return was_pending

    async def pause_actor(self, pause: StoredPause, *, epoch: int) -> bool:
        """Note a pause, and return whether the actor was not paused before.

        Raises:
            FencedError: The shard's epoch has moved.
            OverloadedError: Too many actors are paused.
        """
        size_bytes = text_bytes("principal", pause.principal)
        member = partial(pauses.pause_actor, pause=pause, epoch=epoch)
        is_new: bool = await self._submit(member, size_bytes)
        return is_new

    async def resume_actor(self, pause: StoredPause, *, epoch: int) -> bool:
        """Note the end of a pause, and return whether there was one.

        Raises:
            FencedError: The shard's epoch has moved.
        """
        size_bytes = text_bytes("principal", pause.principal)
        member = partial(pauses.resume_actor, pause=pause, epoch=epoch)
        was_paused: bool = await self._submit(member, size_bytes)
        return was_paused

    async def release(self) -> None:
        """End the held state; harmless when it has ended."""
        await self._submit(rows.release_store, 0)
        self._held = False
        self.check_invariants()

    def _submit(self, member: Work, size_bytes: int) -> asyncio.Future[T]:
        if self._writer is None:
            return _failed(self._read_only())
        return self._writer.submit(member, size_bytes)

    def _read_only(self) -> StoreHeldError:
        message = f"{self._path} was opened read-only; ask its holder, or open it for writing"
        return StoreHeldError(message, store=str(self._path))

    # --- care -----------------------------------------------------------------------------------

    async def stats(self) -> StoreStats:
        """Return counts and sizes, of one snapshot."""
        self._require_open()
        return await self._aside(partial(read_stats, path=self._path))

    async def check(self) -> CheckReport:
        """Read everything, compare every checksum and verify every audit chain."""
        self._require_open()
        return await self._aside(check_store)

    async def backup(self, target: Path) -> None:
        """Write a consistent copy of the whole store, blobs included, beside a running server.

        ``target`` becomes a directory; see `backup`. The log grows while a backup runs, since its
        snapshot must stay readable.

        Raises:
            ConflictError: ``target`` exists.
            DiskFullError: No space; nothing is left at ``target``.
            CorruptionError: A blob is damaged; nothing is left at ``target``.
        """
        self._require_open()
        now_ms = self._clock.now_ms()
        job = partial(write_backup, blobs=self._blobs, target=target, now_ms=now_ms)
        await self._aside(job)

    async def compact(self) -> Compaction:
        """Give the space of removed rows and unnamed blobs back, beside a running server.

        Works in slices between commits, bounded by the free pages found at the beginning. Blobs
        are looked for in every row, aside.

        Raises:
            ConflictError: The file was made without the bookkeeping that this needs, or a backup
                is being made.
            DiskFullError: No space for moving a slice; earlier slices stay done.
        """
        before_bytes = await self._measure_file()
        free: int = await self._submit(_count_free, 0)
        for _ in range(ceil(free / COMPACT_SLICE_PAGES)):
            free = await self._submit(rows.compact_slice, 0)
        swept = await self._aside(self._sweep)
        return Compaction(
            before_bytes=before_bytes,
            after_bytes=await self._measure_file(),
            blobs_removed=swept.blobs,
            blob_bytes_removed=swept.size_bytes,
        )

    def _sweep(self, connection: sqlite3.Connection) -> Swept:
        return self._blobs.sweep(partial(find_named, connection))

    async def _measure_file(self) -> int:
        """Return the file's size once the log is in it."""
        writer = self._require_open().writer
        if writer is None:
            raise self._read_only()
        # Behind the last batch, on the writer's own thread: it alone checkpoints.
        await asyncio.get_running_loop().run_in_executor(self._executor, checkpoint, writer)
        return self._path.stat().st_size

    async def engine_report(self) -> EngineReport:
        """Return the engine's version and settings, and the disk's sync latency, for `doctor`."""
        opened = self._require_open()
        writer = opened.writer or opened.reader
        job = partial(report_engine, writer, self._path.parent, self._clock)
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    def _require_open(self) -> Opened:
        if self._opened is None:
            raise StoreError("the store is closed; open it again")
        return self._opened

    async def close(self) -> None:
        """Finish queued commits, then let go of the store; harmless when done before."""
        opened = self._opened
        if opened is None:
            return
        self.check_invariants()
        self._opened = None
        try:
            if self._writer is not None:
                await self._writer.close()
        finally:
            self._give_up()
            now_ms = self._clock.now_ms() if self.failure is None else None
            job = partial(_close, opened, now_ms)
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, job)
            finally:
                self._executor.shutdown(wait=False)

    def abandon(self) -> None:
        """Let go of the store as a crash would: what was not durable is gone.

        For simulated crashes and for a supervisor that gives up; blocks until a batch on its way
        to the disk has ended.
        """
        opened, self._opened = self._opened, None
        self._give_up()
        self.check_invariants()
        self._executor.shutdown(wait=True)
        if opened is not None:
            _close(opened, None)

    def _give_up(self) -> None:
        """Cancel what still waits: nothing, unless a close was cut short."""
        if self._writer is not None:
            self._writer.abandon()

    def check_invariants(self) -> None:
        """Assert what always holds between two callbacks."""
        if self._writer is not None:
            self._writer.check_invariants()
        assert self._writer is not None or not self._grants, "who only reads owns no shard"
        assert bool(self._grants) == bool(self._session), "who owns shards has a session"


def _count_free(transaction: Transaction) -> int:
    return require_compactable(transaction.connection)


def _failed(error: KelpieError) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _discard(opening: asyncio.Future[Opened]) -> None:
    """Close what was opened for somebody who does not wait for it any more."""
    if not opening.cancelled() and opening.exception() is None:
        _close(opening.result(), None)


def _close(opened: Opened, now_ms: int | None) -> None:
    """Close both connections, and with ``now_ms`` write the session down as ended in order.

    Then the reader goes first, so that the engine removes the log, all of which is in the file.
    Otherwise the reader goes last, which leaves the log for the next session, as a crash does.
    """
    try:
        if opened.writer is not None and now_ms is not None:
            end_session(opened.writer, opened.session, now_ms)
            # A reader in another process keeps the engine from doing this when it closes.
            checkpoint(opened.writer)
            opened.reader.close()
    except sqlite3.Error as error:
        raise translate_error(error, "closing the store") from error
    finally:
        _let_go(opened)


def _let_go(opened: Opened) -> None:
    try:
        if opened.writer is not None:
            opened.writer.close()
        opened.reader.close()
    except sqlite3.Error as error:
        raise translate_error(error, "closing the store") from error
    finally:
        if opened.lock is not None:
            opened.lock.release()
