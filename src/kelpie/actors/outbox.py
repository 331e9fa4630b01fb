"""Delivers stored messages: exactly once, and in order for each (sender, receiver).

The receiver's commit consumes the row, so a message whose row is gone has had its turn. A message
that fails is retried with growing pauses; after ``MESSAGE_ATTEMPTS_MAX`` it is a dead letter, and
its lane goes on. The pump reads rows by id and never trusts memory: a wake-up is a hint.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from kelpie.actors.pump import (
    RETRY_DELAY_MS_MAX,
    PumpDeps,
    Setback,
    describe_failure,
    judge_failure,
)
from kelpie.core.errors import DrainingError, KelpieError, MessageGoneError
from kelpie.core.ids import ActorId
from kelpie.ports.faults import fault
from kelpie.storage.records import Commit, CommitReceipt, StoredMessage

PAGE_ROWS: Final = 500
BACKLOG_ROWS_MAX: Final = 5_000  # read ahead this far; the rest waits in the store

Lane = tuple[ActorId, ActorId]


class OutboxPump:
    """Moves messages from the store to their receivers' turns."""

    def __init__(self, deps: PumpDeps) -> None:
        self._store = deps.store
        self._runtime = deps.runtime
        self._clock = deps.clock
        self._telemetry = deps.telemetry
        self._supervisor = deps.supervisor
        self._lanes: dict[Lane, deque[StoredMessage]] = {}
        self._unhosted: set[str] = set()
        self._cursor = 0
        self._backlog = 0
        self._news = asyncio.Event()
        self._news.set()
        deps.runtime.listen(self._on_commit)

    @property
    def backlog(self) -> int:
        """How many messages are read and not settled."""
        return self._backlog

    def start(self) -> None:
        """Begin delivering, beginning with what an earlier process left."""
        self._supervisor.keep("actors.outbox", self._pump)

    def wake(self) -> None:
        """Look at the store for messages that no commit announced."""
        self._news.set()

    def _on_commit(self, _: Commit, receipt: CommitReceipt) -> None:
        if receipt.message_ids:
            self._news.set()

    async def _pump(self) -> None:
        self._news.set()  # a read that failed took the news with it
        while True:
            await self._news.wait()
            self._news.clear()
            while self._backlog < BACKLOG_ROWS_MAX:
                page = await self._store.outbox(self._cursor, PAGE_ROWS)
                if not page:
                    break
                self._cursor = page[-1].message_id
                for message in page:
                    self._enqueue(message)

    def _enqueue(self, message: StoredMessage) -> None:
        if not self._runtime.hosts(message.receiver.type):
            self._leave(message.receiver)
            return
        lane = (message.sender, message.receiver)
        queue = self._lanes.get(lane)
        self._backlog += 1
        if queue is None:
            self._lanes[lane] = deque((message,))
            self._deliver(lane, message)
        else:
            queue.append(message)

    def _leave(self, receiver: ActorId) -> None:
        """Another program hosts that type: its messages wait in the store for it to start."""
        if receiver.type not in self._unhosted:
            self._unhosted.add(receiver.type)
            self._telemetry.log("warning", "message.unhosted", receiver=str(receiver))

    def _deliver(self, lane: Lane, message: StoredMessage) -> None:
        delay_ms = message.not_before_ms - self._clock.now_ms()
        if delay_ms > 0:
            name = f"actors.outbox.retry:{message.message_id}"
            self._supervisor.spawn(name, self._deliver_later(lane, message, delay_ms))
            return
        outcome = self._runtime.deliver(
            message.receiver,
            message.body,
            principal=f"actor:{message.sender}",
            message_id=message.message_id,
        )
        outcome.add_done_callback(lambda done: self._settled(lane, message, done))
        if fault("concurrency.duplicate_delivery"):
            self._deliver_again(message)

    def _deliver_again(self, message: StoredMessage) -> None:
        """Deliver a message that is on its way already; the row lets it have one turn."""
        again = self._runtime.deliver(
            message.receiver,
            message.body,
            principal=f"actor:{message.sender}",
            message_id=message.message_id,
        )
        again.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _deliver_later(self, lane: Lane, message: StoredMessage, delay_ms: int) -> None:
        await self._clock.sleep(min(delay_ms, RETRY_DELAY_MS_MAX) / 1000)
        self._deliver(lane, message)

    def _settled(self, lane: Lane, message: StoredMessage, done: asyncio.Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or isinstance(error, DrainingError):
            return
        if error is None or isinstance(error, MessageGoneError):
            self._advance(lane)
            return
        setback = judge_failure(error, message.attempts)
        name = f"actors.outbox.failed:{message.message_id}"
        self._supervisor.spawn(name, self._failed(lane, message, setback))

    async def _failed(self, lane: Lane, message: StoredMessage, setback: Setback) -> None:
        now_ms = self._clock.now_ms()
        error, is_final = setback.error, setback.is_final
        if is_final or not error.retriable:
            try:
                await self._store.outbox_failed(
                    message.message_id,
                    error=describe_failure(error),
                    retry_at_ms=None if is_final else now_ms + setback.delay_ms,
                    now_ms=now_ms,
                )
            except KelpieError as refusal:
                # The row says what it said before: this delivery did not count.
                self._telemetry.log("warning", "message.uncounted", error=refusal.message)
                await self._clock.sleep(setback.delay_ms / 1000)
                self._deliver(lane, message)
                return
        if is_final:
            self._telemetry.count("kelpie.message.dead_letters", type=message.receiver.type)
            self._telemetry.log(
                "error", "message.dead", receiver=str(message.receiver), error=str(error)
            )
            self._advance(lane)
            return
        await self._clock.sleep(setback.delay_ms / 1000)
        again = StoredMessage(
            message_id=message.message_id,
            sender=message.sender,
            receiver=message.receiver,
            body=message.body,
            attempts=setback.attempts,
            not_before_ms=0,
        )
        self._deliver(lane, again)

    def _advance(self, lane: Lane) -> None:
        queue = self._lanes[lane]
        queue.popleft()
        self._backlog -= 1
        assert self._backlog >= 0, "settled more messages than were read"
        if queue:
            self._deliver(lane, queue[0])
        else:
            del self._lanes[lane]
        if self._backlog < BACKLOG_ROWS_MAX:
            self._news.set()
