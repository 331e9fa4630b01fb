"""Fires durable timers: at least once, earliest first, none lost when the clock jumps.

The turn that a reminder causes consumes its row, so a fired reminder that committed never fires
again. The pump looks at the wall clock at least once a second, so a jump delays nothing longer.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from kelpie.actors.pump import PumpDeps
from kelpie.core import limits
from kelpie.core.errors import InputError, KelpieError, MessageGoneError
from kelpie.core.ids import ActorId
from kelpie.storage.records import Commit, CommitReceipt, ReminderRow

PAGE_ROWS: Final = 500
LOOK_INTERVAL_S: Final = 1.0
RETRY_DELAY_S: Final = 1.0

Timer = tuple[ActorId, str, int]


class ReminderPump:
    """Turns due reminders into turns of their actors."""

    def __init__(self, deps: PumpDeps) -> None:
        self._store = deps.store
        self._runtime = deps.runtime
        self._clock = deps.clock
        self._telemetry = deps.telemetry
        self._supervisor = deps.supervisor
        self._flying: set[Timer] = set()
        self._failures: dict[Timer, int] = {}
        self._news = asyncio.Event()
        deps.runtime.listen(self._on_commit)

    def start(self) -> None:
        """Begin firing, beginning with what became due while no process ran."""
        self._supervisor.keep("actors.reminders", self._pump)

    def _on_commit(self, commit: Commit, _: CommitReceipt) -> None:
        if commit.reminders:
            self._news.set()

    async def _pump(self) -> None:
        while True:
            due = await self._store.reminders_due(
                self._clock.now_ms(), PAGE_ROWS + len(self._flying)
            )
            for row in due:
                self._fire(row)
            await self._rest()

    async def _rest(self) -> None:
        """Wait for the next due time, for a new reminder, or for a look at the clock."""
        next_ms = await self._store.reminder_next_ms()
        wait_s = LOOK_INTERVAL_S
        if next_ms is not None and not self._flying:
            wait_s = min(wait_s, max(0.001, (next_ms - self._clock.now_ms()) / 1000))
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    def _fire(self, row: ReminderRow) -> None:
        timer = (row.actor, row.name, row.due_ms)
        if timer in self._flying:
            return
        self._flying.add(timer)
        outcome = self._runtime.deliver(
            row.actor, row.body, principal="system:reminder", fired=(row.name, row.due_ms)
        )
        outcome.add_done_callback(lambda done: self._settled(timer, done))

    def _settled(self, timer: Timer, done: asyncio.Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None or isinstance(error, MessageGoneError):
            self._flying.discard(timer)
            self._failures.pop(timer, None)
            self._news.set()
            return
        name = f"actors.reminders.failed:{timer[0]}"
        self._supervisor.spawn(name, self._failed(timer, error))

    async def _failed(self, timer: Timer, error: BaseException) -> None:
        actor, reminder, _ = timer
        failures = self._failures.get(timer, 0) + 1
        self._failures[timer] = failures
        self._telemetry.log(
            "error", "reminder.failed", actor=str(actor), reminder=reminder, error=str(error)
        )
        retriable = isinstance(error, KelpieError) and error.retriable
        hopeless = isinstance(error, InputError) or failures >= limits.MESSAGE_ATTEMPTS_MAX
        if hopeless and not retriable:
            # The row stays: the store is the truth, and a person can see it. It is not fired
            # again by this process, so that one poisoned timer cannot spin.
            self._telemetry.count("kelpie.reminder.poisoned", type=actor.type)
            return
        await self._clock.sleep(RETRY_DELAY_S)
        self._flying.discard(timer)
        self._news.set()
