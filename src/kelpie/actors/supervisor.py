"""The one owner of background tasks: the only module that may create a bare task.

Invariants: every task has a name; a kept task that fails is restarted and the failure is reported;
after `close` no task of this supervisor runs.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry

RESTART_DELAY_S_MIN: Final = 0.05
RESTART_DELAY_S_MAX: Final = 5.0


class Supervisor:
    """Runs background work and says so when it fails."""

    def __init__(self, *, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def task_count(self) -> int:
        """How many tasks run now."""
        return len(self._tasks)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` once in the background; its failure is reported, not raised."""
        assert name, "every task has a name"
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(self._once(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget(done, work))

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` until it returns, again after each failure, with growing pauses."""
        self.spawn(name, self._restart(name, work))

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        self._closed = True
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.done() for task in tasks), "a task ignored its cancellation"
        assert not self._tasks, "a task outlived its supervisor"

    def _forget(self, task: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        self._tasks.discard(task)
        work.close()  # a task that was cancelled before its first step never awaited it

    async def _once(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        await self._try(name, lambda: work, restarts=False)

    async def _restart(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        delay_s = RESTART_DELAY_S_MIN
        while not await self._try(name, work, restarts=True):
            await self._clock.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_S_MAX)

    async def _try(self, name: str, work: Callable[[], Awaitable[None]], *, restarts: bool) -> bool:
        """Return whether ``work`` ended well; report what it raised if it did not."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001  a supervisor reports whatever it is
            self._report(name, error, restarts=restarts)
            return False
        return True

    def _report(self, name: str, error: Exception, *, restarts: bool) -> None:
        trace = "".join(traceback.format_exception(error))
        self._telemetry.count("kelpie.task.failures", task=name.partition(":")[0])
        self._telemetry.log(
            "error", "task.failed", task=name, error=repr(error), restarts=restarts, trace=trace
        )
