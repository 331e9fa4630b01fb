"""Delivers stored messages: exactly once, and in order for each (sender, receiver).

The receiver's commit consumes the row, so a message whose row is gone has had its turn. A message
that fails is retried with growing pauses; after ``MESSAGE_ATTEMPTS_MAX`` it is a dead letter, and
its lane goes on. A submitted call is a message too: what its actor refuses on purpose is its end,
and it can be withheld until its turn begins. The pump reads rows by id and never trusts memory: a
wake-up is a hint. What is for a paused actor stays on disk until the actor is resumed.

It delivers to the actors of this node's shards. A shard that is gained is read from the beginning,
since messages for it were there before; the lanes of one that is lost are dropped, and what becomes
of their deliveries is the next owner's to see. Where several nodes send, a hint may be lost, so it
looks now and then; and where ids become visible out of order, its cursor stays below the horizon,
so that it never meets a message before an earlier one of the same sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from kelpie.actors.callers import principal_of
from kelpie.actors.described import describe
from kelpie.actors.failures import describe_failure
from kelpie.actors.pump import (
    RETRY_DELAY_MS_MAX,
    PumpDeps,
    Setback,
    judge_failure,
)
from kelpie.core import limits
from kelpie.core.errors import DrainingError, KelpieError, MessageGoneError
from kelpie.core.ids import ActorId
from kelpie.ports.faults import fault
from kelpie.storage.records import CallEnd, CallState, Commit, CommitReceipt, StoredMessage

PAGE_ROWS: Final = 500
BACKLOG_ROWS_MAX: Final = 5_000  # read ahead this far; the rest waits in the store
LOOK_INTERVAL_S: Final = 1.0  # between two looks, among several nodes
LOOK_SHARE_MAX: Final = 0.05  # of the time, spent on looks; a long backlog is read less often
FIRST_ID: Final = 1

Lane = tuple[ActorId, ActorId]
Queue = deque[StoredMessage]
"""A lane's messages; a delivery knows by it whether its lane is still the one it began in."""


def _is_call(message: StoredMessage) -> bool:
    return principal_of(message.sender) is not None


class OutboxPump:
    """Moves messages from the store to their receivers' turns."""

    def __init__(self, deps: PumpDeps) -> None:
        self._store = deps.store
        self._runtime = deps.runtime
        self._clock = deps.clock
        self._telemetry = deps.telemetry
        self._supervisor = deps.supervisor
        self._lanes: dict[Lane, deque[StoredMessage]] = {}
        self._known: set[int] = set()  # the messages in all lanes
        self._parked: dict[ActorId, int] = {}  # paused receivers: their first message on disk alone
        self._unhosted: set[str] = set()
        self._ownership = deps.runtime.ownership
        self._is_one_of_several = deps.is_one_of_several
        self._look_s = LOOK_INTERVAL_S
        self._cursor = 0
        self._horizon = deps.horizon
        self._rewinds = 0
        self._backlog = 0
        self._withheld: dict[int, StoredMessage | None] = {}
        self._gone: set[int] = set()
        self._ended: list[Callable[[int], None]] = []
        self._news = asyncio.Event()
        self._news.set()
        deps.runtime.listen(self._on_commit)
        deps.runtime.listen_resumed(self._unpark)
        self._ownership.listen(gained=self._begin_again, lost=self._drop)

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

    def wake_from(self, message_id: int) -> None:
        """Look at the store for messages from this id on; those that are known do no harm."""
        assert message_id >= FIRST_ID, "ids count from one"
        if message_id <= self._cursor or message_id == FIRST_ID:
            self._cursor = message_id - 1
            self._rewinds += 1
        self._news.set()
        assert self._cursor >= 0

    def listen(self, listener: Callable[[int], None]) -> None:
        """Tell ``listener`` of every submitted call that ended without a turn, by its message."""
        assert listener not in self._ended, "a listener is told once"
        self._ended.append(listener)
        assert self._ended

    def withhold(self, message_id: int) -> None:
        """Begin no more delivery of this message, until `release`."""
        assert message_id not in self._withheld, "a message is withheld by one at a time"
        self._withheld[message_id] = None
        assert message_id in self._withheld

    def release(self, message_id: int, lane: Lane, *, is_gone: bool) -> None:
        """Go on with a withheld message of ``lane``, or pass it over once it is gone."""
        assert message_id in self._withheld, "only what is withheld is released"
        held_back = self._withheld.pop(message_id)
        queue = self._lanes.get(lane)
        if queue is None or queue[0].message_id != message_id:
            if is_gone:
                self._forget(lane, message_id)
        elif held_back is not None and is_gone:
            self._advance(lane)
        elif held_back is not None:
            self._deliver(lane, held_back)
        elif is_gone:
            self._gone.add(message_id)  # a pause between two attempts ends with `_deliver`
        assert message_id not in self._withheld

    def _forget(self, lane: Lane, message_id: int) -> None:
        """Take a message that is gone out of its lane, where others are before it."""
        queue = self._lanes.get(lane, deque())
        for message in queue:
            if message.message_id == message_id:
                queue.remove(message)
                self._known.remove(message_id)
                self._backlog -= 1
                return

    def _on_commit(self, _: Commit, receipt: CommitReceipt) -> None:
        if receipt.message_ids:
            self._news.set()

    async def _pump(self) -> None:
        self._news.set()  # a read that failed took the news with it
        while True:
            await self._await_news()
            began_ns = self._clock.boot_ns()
            await self._read()
            took_s = (self._clock.boot_ns() - began_ns) / 1e9
            self._look_s = max(LOOK_INTERVAL_S, took_s / LOOK_SHARE_MAX)

    async def _await_news(self) -> None:
        try:
            async with asyncio.timeout(self._look_s if self._is_one_of_several else None):
                await self._news.wait()
        except TimeoutError:
            if self._horizon is None:
                self.wake_from(FIRST_ID)
        self._news.clear()

    async def _read(self) -> None:
        """Read what is new, until there is no more of it, or no room."""
        while self._has_room():
            cursor, rewinds = self._cursor, self._rewinds
            horizon = limits.INTEGER_MAX
            if self._horizon is not None:
                horizon = await self._horizon()  # before the read, which then sees all below it
            page = await self._store.outbox(cursor, PAGE_ROWS)
            if self._rewinds != rewinds:
                continue  # somebody was resumed meanwhile, or a shard gained
            if page:
                self._cursor = max(cursor, min(page[-1].message_id, horizon))
            for message in page:
                self._enqueue(message)
            if self._cursor == cursor:
                return

    def _has_room(self) -> bool:
        """Whether more may be read; once full, what paused actors hold makes room first."""
        if self._backlog >= BACKLOG_ROWS_MAX:
            for lane in [lane for lane in self._lanes if self._runtime.is_paused(lane[1])]:
                self._park_rest(lane)
        return self._backlog < BACKLOG_ROWS_MAX

    def _park_rest(self, lane: Lane) -> None:
        """Leave what is behind the first message of a lane on disk, until its actor is resumed."""
        queue, receiver = self._lanes[lane], lane[1]
        while len(queue) > 1:
            first_id = queue.pop().message_id
            self._known.remove(first_id)
            self._backlog -= 1
            self._parked[receiver] = min(first_id, self._parked.get(receiver, first_id))

    def _unpark(self, receiver: ActorId) -> None:
        """Read again from the first message that was left on disk for a paused actor."""
        first_id = self._parked.pop(receiver, None)
        if first_id is not None:
            self.wake_from(first_id)

    def _begin_again(self, _: frozenset[int]) -> None:
        self.wake_from(FIRST_ID)

    def _drop(self, shards: frozenset[int]) -> None:
        """Forget the messages for actors of shards that are owned no longer."""
        for lane in [lane for lane in self._lanes if lane[1].shard in shards]:
            queue = self._lanes.pop(lane)
            ids = {message.message_id for message in queue}
            self._known -= ids
            self._gone -= ids
            self._backlog -= len(queue)
        for receiver in [receiver for receiver in self._parked if receiver.shard in shards]:
            del self._parked[receiver]
        self._news.set()
        assert self._backlog == len(self._known), "what is read and not settled is known"

    def _enqueue(self, message: StoredMessage) -> None:
        receiver = message.receiver
        if not self._runtime.hosts(receiver.type):
            self._leave(receiver)
            return
        if message.message_id in self._known:
            return
        if not (self._ownership.is_whole or self._ownership.serves(receiver.shard)):
            return
        if receiver in self._parked or self._runtime.is_paused(receiver):
            self._parked.setdefault(receiver, message.message_id)
            return
        lane = (message.sender, receiver)
        queue = self._lanes.get(lane)
        self._known.add(message.message_id)
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
        if message.message_id in self._withheld:
            self._withheld[message.message_id] = message
            return
        if message.message_id in self._gone:
            self._advance(lane)
            return
        delay_ms = message.not_before_ms - self._clock.now_ms()
        if delay_ms > 0:
            name = f"actors.outbox.retry:{message.message_id}"
            self._supervisor.spawn(name, self._deliver_later(lane, message, delay_ms))
            return
        queue = self._lanes[lane]
        outcome = self._hand_over(message)
        outcome.add_done_callback(lambda done: self._settled(lane, queue, message, done))
        if fault("concurrency.duplicate_delivery"):
            self._deliver_again(message)

    def _hand_over(self, message: StoredMessage) -> asyncio.Future[Any]:
        caller = principal_of(message.sender)
        return self._runtime.deliver(
            message.receiver,
            message.body,
            principal=f"actor:{message.sender}" if caller is None else caller,
            message_id=message.message_id,
            is_call=caller is not None,
        )

    def _deliver_again(self, message: StoredMessage) -> None:
        """Deliver a message that is on its way already; the row lets it have one turn."""
        again = self._hand_over(message)
        again.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _deliver_later(self, lane: Lane, message: StoredMessage, delay_ms: int) -> None:
        queue = self._lanes[lane]
        await self._clock.sleep(min(delay_ms, RETRY_DELAY_MS_MAX) / 1000)
        if self._lanes.get(lane) is queue:
            self._deliver(lane, message)

    def _settled(
        self, lane: Lane, queue: Queue, message: StoredMessage, done: asyncio.Future[Any]
    ) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or isinstance(error, DrainingError):
            return
        if self._lanes.get(lane) is not queue:
            return  # its shard was lost
        if error is None or isinstance(error, MessageGoneError):
            self._advance(lane)
            return
        setback = judge_failure(error, message.attempts, is_call=_is_call(message))
        name = f"actors.outbox.failed:{message.message_id}"
        self._supervisor.spawn(name, self._failed(lane, queue, message, setback))

    async def _failed(
        self, lane: Lane, queue: Queue, message: StoredMessage, setback: Setback
    ) -> None:
        if setback.is_final or setback.counts:
            try:
                await self._note(message, setback)
            except KelpieError as refusal:
                # The row says what it said before: this delivery did not count.
                self._telemetry.log("warning", "message.uncounted", error=refusal.message)
                await self._clock.sleep(setback.delay_ms / 1000)
                if self._lanes.get(lane) is queue:
                    self._deliver(lane, message)
                return
        if setback.is_final:
            self._tell_end(message, setback)
            if self._lanes.get(lane) is queue:
                self._advance(lane)
            return
        await self._clock.sleep(setback.delay_ms / 1000)
        if self._lanes.get(lane) is not queue:
            return
        again = StoredMessage(
            message_id=message.message_id,
            sender=message.sender,
            receiver=message.receiver,
            body=message.body,
            attempts=setback.attempts,
            not_before_ms=0,
        )
        self._deliver(lane, again)

    async def _note(self, message: StoredMessage, setback: Setback) -> None:
        """Write down what the failed delivery comes to: a count, a dead letter, a call's end."""
        now_ms = self._clock.now_ms()
        error = describe_failure(setback.error)
        if setback.is_final and _is_call(message):
            body = msgspec.msgpack.encode(describe(setback.error))
            state: CallState = "failed" if setback.is_refused else "dead"
            end = CallEnd(state, body, now_ms, now_ms + limits.CALL_TTL_MS)
            await self._store.end_call(message.message_id, end, error=error)
            return
        await self._store.outbox_failed(
            message.message_id,
            error=error,
            retry_at_ms=None if setback.is_final else now_ms + setback.delay_ms,
            now_ms=now_ms,
        )

    def _tell_end(self, message: StoredMessage, setback: Setback) -> None:
        if _is_call(message):
            for listener in self._ended:
                listener(message.message_id)
            if setback.is_refused:
                return
        receiver, error = message.receiver, setback.error
        self._telemetry.count("kelpie.message.dead_letters", type=receiver.type)
        self._telemetry.log("error", "message.dead", receiver=str(receiver), error=str(error))

    def _advance(self, lane: Lane) -> None:
        queue = self._lanes[lane]
        settled_id = queue.popleft().message_id
        self._gone.discard(settled_id)
        self._known.remove(settled_id)
        self._backlog -= 1
        assert self._backlog >= 0, "settled more messages than were read"
        if queue:
            self._deliver(lane, queue[0])
        else:
            del self._lanes[lane]
        if self._backlog < BACKLOG_ROWS_MAX:
            self._news.set()
