"""Group commit: members queue on the event loop, a batch at a time runs in the executor.

While one batch is on its way to the disk the next one gathers, so that a busy store syncs once
for many commits; where they come one by one, each begins at once. Batches are chained by callbacks;
there is no task and no thread of the writer's own, so a simulated loop can run them inline.

Checkpoints run between batches, in the same executor, once the batch before has been answered.

Invariants: members run in the order of `submit`; at most one batch runs at a time; after an unknown
commit outcome nothing is written any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sqlite3
from collections import deque
from concurrent.futures import Executor
from typing import Any, Final

from kelpie.core.errors import KelpieError, OverloadedError, StoreError
from kelpie.core.limits import (
    COMMIT_BATCH_BYTES_MAX,
    COMMIT_BATCH_ROWS_MAX,
    COMMIT_QUEUE_BYTES_MAX,
    COMMIT_QUEUE_DEPTH_MAX,
)
from kelpie.ports.faults import fault
from kelpie.storage.sqlite.batch import BatchResult, Work, run_batch
from kelpie.storage.sqlite.engine import checkpoint
from kelpie.storage.sqlite.pace import LogGauge
from kelpie.storage.sqlite.rows import keep_house

BASE_RUN_IN_EXECUTOR: Final = asyncio.BaseEventLoop.run_in_executor

# A member, its size in bytes and the future of its value. Bare, since every turn makes one.
_Queued = tuple[Work, int, asyncio.Future[Any]]
Job = asyncio.Future[BatchResult] | concurrent.futures.Future[BatchResult]


class GroupWriter:
    """The queue in front of the one writing connection. Belongs to the running event loop."""

    __slots__ = (
        "_connection",
        "_executor",
        "_failure",
        "_gauge",
        "_has_housework",
        "_idle",
        "_is_alone",
        "_is_closed",
        "_is_direct",
        "_is_scheduled",
        "_loop",
        "_queue",
        "_queued_bytes",
        "_running",
        "_running_bytes",
    )

    def __init__(self, connection: sqlite3.Connection, executor: Executor) -> None:
        self._connection = connection
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        # A loop that runs jobs in its own way, as a simulated one does, is given them.
        self._is_direct = type(self._loop).run_in_executor is BASE_RUN_IN_EXECUTOR
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._gauge = LogGauge()
        # Empty while a checkpoint or housekeeping alone has the connection.
        self._running: list[_Queued] | None = None
        self._running_bytes = 0
        self._idle: list[asyncio.Future[None]] = []
        self._is_scheduled = False
        # Commits come one by one: nothing is gained by waiting for others to share a sync.
        self._is_alone = False
        self._is_closed = False
        self._failure: KelpieError | None = None
        # Deletions may have been cut short by the end of the previous session.
        self._has_housework = True
        self._schedule()

    @property
    def failure(self) -> KelpieError | None:
        """Why nothing is written any more; None while all is well."""
        return self._failure

    @property
    def free_connection(self) -> sqlite3.Connection | None:
        """The connection, for one read in this very callback; None while anything else has it."""
        is_busy = self._running is not None or self._is_closed or self._failure is not None
        return None if is_busy else self._connection

    def submit(self, member: Work, size_bytes: int) -> asyncio.Future[Any]:
        """Queue ``member`` and return the future of its value; never blocks, never raises.

        Cancelling the future does not take the member back.
        """
        assert size_bytes >= 0, "a member has a size"
        future: asyncio.Future[Any] = self._loop.create_future()
        queued_bytes = self._queued_bytes + size_bytes
        is_full = (
            len(self._queue) >= COMMIT_QUEUE_DEPTH_MAX
            or queued_bytes > COMMIT_QUEUE_BYTES_MAX
            or fault("resource.commit_queue_full")
        )
        if is_full or self._is_closed or self._failure is not None:
            future.set_exception(self._refusal())
            return future
        self._queue.append((member, size_bytes, future))
        self._queued_bytes = queued_bytes
        if not self._is_scheduled and self._running is None:
            if self._is_alone:
                self._start()
            else:
                self._schedule()
        return future

    async def close(self) -> None:
        """Refuse everything new, and return once what was queued has come to its outcome."""
        self._is_closed = True
        while self._queue or self._running is not None:
            future = self._loop.create_future()
            self._idle.append(future)
            await future
        self.check_invariants()

    def abandon(self) -> None:
        """Refuse everything new and cancel what has not begun, as a crash would."""
        self._is_closed = True
        self._queued_bytes = 0
        while self._queue:
            self._queue.popleft()[2].cancel()
        self.check_invariants()

    def check_invariants(self) -> None:
        """Assert what always holds between two callbacks."""
        assert self._queued_bytes == sum(size_bytes for _, size_bytes, _ in self._queue)
        assert len(self._queue) <= COMMIT_QUEUE_DEPTH_MAX
        assert not self._queue or self._is_scheduled or self._running is not None

    def _refusal(self) -> KelpieError:
        if self._failure is not None:
            message = f"the store stopped: {self._failure.message}"
            return StoreError(message, cause=self._failure.code)
        if self._is_closed:
            return StoreError("the store is closed; open it again")
        return OverloadedError(
            f"{len(self._queue):,} commits ({self._queued_bytes:,} bytes) wait for the disk; "
            "try again later",
            waiting=len(self._queue),
        )

    def _schedule(self) -> None:
        # One turn later, so that everything submitted in this turn shares a sync.
        if not self._is_scheduled and self._running is None:
            self._is_scheduled = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        assert self._running is None, "one batch at a time"
        self._is_scheduled = False
        if not self._queue and (self._is_closed or not self._has_housework):
            return
        self._running = self._take_batch()
        self._is_alone = len(self._running) == 1
        members = [member for member, _, _ in self._running]
        if self._is_direct:
            # One round of the loop less than a future around a future takes.
            job = self._executor.submit(run_batch, self._connection, members, keep_house)
            job.add_done_callback(self._tell)
        else:
            self._loop.run_in_executor(
                self._executor, run_batch, self._connection, members, keep_house
            ).add_done_callback(self._finish)

    def _tell(self, job: Job) -> None:
        """Have the loop finish a batch, from the writer's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._finish, job)

    def _take_batch(self) -> list[_Queued]:
        """Take what fits one batch off the queue; at least one member if any waits."""
        queue = self._queue
        if len(queue) <= COMMIT_BATCH_ROWS_MAX and self._queued_bytes <= COMMIT_BATCH_BYTES_MAX:
            self._running_bytes, self._queued_bytes = self._queued_bytes, 0
            batch = list(queue)
            queue.clear()
            return batch
        taken: list[_Queued] = []
        taken_bytes = 0
        while queue and len(taken) < COMMIT_BATCH_ROWS_MAX:
            size_bytes = queue[0][1]
            if taken and taken_bytes + size_bytes > COMMIT_BATCH_BYTES_MAX:
                break
            taken_bytes += size_bytes
            taken.append(queue.popleft())
        self._queued_bytes -= taken_bytes
        self._running_bytes = taken_bytes
        return taken

    def _finish(self, job: Job) -> None:
        batch, self._running = self._running, None
        assert batch is not None, "a batch that ends was running"
        result = _result_of(job, len(batch))
        self._has_housework = result.has_more
        for (_, _, future), outcome in zip(batch, result.outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, KelpieError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._gauge.add(changes=result.changes, size_bytes=self._running_bytes)
        if result.fatal is not None:
            self._stop(result.fatal)
        elif self._gauge.is_due and not self._is_closed:
            self._checkpoint()
            return
        self._go_on()

    def _checkpoint(self) -> None:
        self._running = []
        job = self._loop.run_in_executor(self._executor, checkpoint, self._connection)
        job.add_done_callback(self._checkpointed)

    def _checkpointed(self, job: asyncio.Future[int]) -> None:
        self._running = None
        self._gauge.settle(job.result())
        self._go_on()

    def _go_on(self) -> None:
        if self._queue or (self._has_housework and not self._is_closed):
            self._schedule()
        if not self._queue:
            self._wake()

    def _stop(self, failure: KelpieError) -> None:
        """Fail what waits: nothing of it was written, and nothing may be."""
        self._failure = failure
        self._has_housework = False
        while self._queue:
            _, size_bytes, future = self._queue.popleft()
            self._queued_bytes -= size_bytes
            if not future.done():
                message = f"the store stopped before this commit: {failure.message}"
                future.set_exception(StoreError(message, cause=failure.code))

    def _wake(self) -> None:
        waiting, self._idle = self._idle, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def _result_of(job: Job, count: int) -> BatchResult:
    """Return what a batch came to; a defect in a member fails its batch, which wrote nothing."""
    error = job.exception()
    if error is None:
        return job.result()
    failure = StoreError(f"a commit could not be carried out: {error!r}")
    failure.__cause__ = error
    return BatchResult([failure] * count, has_more=False)
