"""Fires durable timers: at least once, in order for each actor, none lost when the clock jumps.

The turn that a reminder causes consumes its row, so a fired reminder that committed never fires
again. One reminder of an actor is on its way at a time: one that fails is tried again with growing
pauses while those behind it wait; after ``MESSAGE_ATTEMPTS_MAX`` it is a dead letter, and they go
on. Attempts are counted by this process: a new one begins again.

The store is the truth: memory holds the next few rows of a bounded number of actors, the wall clock
is looked at once a second, and a wake-up is a hint. So a clock that jumps forward makes reminders
due within a second, and one that jumps back lets them wait for their time again.

It fires for the actors of this node's shards: those of a shard that is gained are read at once, the
lanes of one that is lost are dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

from kelpie.actors.failures import describe_failure
from kelpie.actors.pump import (
    RETRY_DELAY_MS_MAX,
    PumpDeps,
    Setback,
    judge_failure,
)
from kelpie.core.errors import BusyError, DrainingError, MessageGoneError, StoreError
from kelpie.core.ids import ActorId
from kelpie.ports.telemetry import Level
from kelpie.storage.records import (
    REMINDERS_FIRST,
    Commit,
    CommitReceipt,
    ReminderCursor,
    ReminderRow,
)

PAGE_ROWS: Final = 500
LANES_MAX: Final = 4_096  # actors with a reminder on its way; the others wait in the store
LANE_ROWS_MAX: Final = 64  # read ahead for one actor
LOOK_INTERVAL_S: Final = 1.0


class _Lane:
    """One actor's due reminders: the first is on its way, ``is_cut`` when more wait on disk."""

    __slots__ = ("attempts", "is_cut", "known", "rows")

    def __init__(self) -> None:
        self.rows: deque[ReminderRow] = deque()
        self.known: set[tuple[str, int]] = set()
        self.attempts = 0
        self.is_cut = False

    def take(self, row: ReminderRow) -> None:
        """Queue a row that is not queued, as long as there is room and none was left behind."""
        if (row.name, row.due_ms) in self.known:
            return
        if self.is_cut or len(self.rows) >= LANE_ROWS_MAX:
            self.is_cut = True
            assert self.rows, "what is cut has rows on their way"
            return
        self.rows.append(row)
        self.known.add((row.name, row.due_ms))
        assert len(self.rows) == len(self.known), "a reminder is queued once"

    def drop_first(self) -> None:
        """Forget the row that was on its way."""
        assert self.rows, "the first row is on its way"
        row = self.rows.popleft()
        self.known.remove((row.name, row.due_ms))
        self.attempts = 0
        assert len(self.rows) == len(self.known), "a reminder is queued once"


class ReminderPump:
    """Turns due reminders into turns of their actors."""

    def __init__(self, deps: PumpDeps) -> None:
        self._store = deps.store
        self._runtime = deps.runtime
        self._clock = deps.clock
        self._telemetry = deps.telemetry
        self._supervisor = deps.supervisor
        self._lanes: dict[ActorId, _Lane] = {}
        self._unhosted: set[str] = set()
        self._is_full = False
        self._news = asyncio.Event()
        self._ownership = deps.runtime.ownership
        self._ownership.listen(gained=lambda _: self._news.set(), lost=self._drop)
        deps.runtime.listen(self._on_commit)
        deps.runtime.listen_resumed(lambda _: self._news.set())

    def start(self) -> None:
        """Begin firing, beginning with what became due while no process ran."""
        self._supervisor.keep("actors.reminders", self._pump)

    def _on_commit(self, commit: Commit, _: CommitReceipt) -> None:
        if commit.reminders:
            self._news.set()

    async def _pump(self) -> None:
        while True:
            now_ms = self._clock.now_ms()
            await self._look(now_ms)
            await self._rest(now_ms)

    async def _look(self, now_ms: int) -> None:
        """Read what is due, and begin a lane for every actor that has none and may have one."""
        after = REMINDERS_FIRST
        left: set[ActorId] = set()  # whose later rows may not overtake one that was left behind
        self._is_full = False
        while True:
            page = await self._store.reminders_due(now_ms, PAGE_ROWS, after=after)
            for row in page:
                if row.actor not in left and not self._take(row):
                    left.add(row.actor)
            if len(page) < PAGE_ROWS or self._is_full:
                return
            after = ReminderCursor(page[-1].due_ms, str(page[-1].actor), page[-1].name)
            await self._clock.sleep(0)

    def _take(self, row: ReminderRow) -> bool:
        """Put a due row into its actor's lane; return False if it has to wait on disk."""
        lane = self._lanes.get(row.actor)
        if lane is not None:
            lane.take(row)
            return not lane.is_cut
        if not self._may_fire(row.actor):
            return False
        if len(self._lanes) >= LANES_MAX:
            self._is_full = True
            return False
        lane = self._lanes[row.actor] = _Lane()
        lane.take(row)
        self._fire(lane, row)
        return True

    def _drop(self, shards: frozenset[int]) -> None:
        """Forget the reminders of actors of shards that are owned no longer."""
        for actor in [actor for actor in self._lanes if actor.shard in shards]:
            del self._lanes[actor]
        assert not any(actor.shard in shards for actor in self._lanes)

    def _may_fire(self, actor: ActorId) -> bool:
        """Whether the actor's type is hosted here, its shard too, and nobody paused the actor."""
        if not (self._ownership.is_whole or self._ownership.serves(actor.shard)):
            return False
        if self._runtime.hosts(actor.type):
            return not self._runtime.is_paused(actor)
        if actor.type not in self._unhosted:
            self._unhosted.add(actor.type)
            self._telemetry.log("warning", "reminder.unhosted", actor=str(actor))
        return False

    async def _rest(self, looked_ms: int) -> None:
        """Wait for the next due time, for news, or for a look at the clock."""
        next_ms = await self._store.reminder_next_ms(after_ms=looked_ms)
        wait_s = LOOK_INTERVAL_S
        if next_ms is not None and not self._is_full:
            wait_s = min(wait_s, max(0.001, (next_ms - self._clock.now_ms()) / 1000))
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    def _fire(self, lane: _Lane, row: ReminderRow) -> None:
        outcome = self._runtime.deliver(
            row.actor, row.body, principal="system:reminder", fired=(row.name, row.due_ms)
        )
        outcome.add_done_callback(lambda done: self._settled(lane, row, done))

    def _settled(self, lane: _Lane, row: ReminderRow, done: asyncio.Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or isinstance(error, DrainingError):
            return
        if self._lanes.get(row.actor) is not lane:
            return  # its shard was lost
        if error is None or isinstance(error, MessageGoneError):
            self._advance(row.actor)
            return
        setback = judge_failure(error, lane.attempts)
        lane.attempts = setback.attempts
        name = f"actors.reminders.failed:{row.actor}"
        self._supervisor.spawn(name, self._failed(lane, row, setback))

    async def _failed(self, lane: _Lane, row: ReminderRow, setback: Setback) -> None:
        error, delay_ms = setback.error, setback.delay_ms
        level: Level = "error" if setback.is_final else "warning"
        self._telemetry.log(
            level,
            "reminder.dead" if setback.is_final else "reminder.failed",
            actor=str(row.actor),
            reminder=row.name,
            error=str(error),
        )
        if setback.is_final:
            try:
                await self._store.bury_reminder(
                    row,
                    attempts=setback.attempts,
                    error=f"reminder {row.name!r}: {describe_failure(error)}",
                    now_ms=self._clock.now_ms(),
                )
            except (BusyError, StoreError):
                delay_ms = RETRY_DELAY_MS_MAX
            else:
                self._telemetry.count("kelpie.reminder.dead_letters", type=row.actor.type)
                if self._lanes.get(row.actor) is lane:
                    self._advance(row.actor)
                return
        await self._clock.sleep(delay_ms / 1000)
        if self._lanes.get(row.actor) is lane:
            self._fire(lane, row)

    def _advance(self, actor: ActorId) -> None:
        lane = self._lanes[actor]
        lane.drop_first()
        if lane.rows:
            self._fire(lane, lane.rows[0])
            return
        del self._lanes[actor]
        if lane.is_cut or (self._is_full and len(self._lanes) <= LANES_MAX // 2):
            self._news.set()
