"""The one owner of background tasks: the only module that may create a bare task.

Invariants: every task has a name; a kept task that fails is restarted and the failure is reported;
after `close` no task of this supervisor runs, but those that swallowed every cancellation.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from kelpie.actors.stepping import Driven
from kelpie.core import limits
from kelpie.core.errors import DrainingError
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry

EAGERLY: Final[dict[str, Any]] = (
    {"eager_start": True} if hasattr(asyncio, "eager_task_factory") else {}
)
T = TypeVar("T")

RESTART_DELAY_S_MIN: Final = 0.05
RESTART_DELAY_S_MAX: Final = 5.0
CANCELLATIONS_MAX: Final = 2


class Supervisor:
    """Runs background work and says so when it fails."""

    def __init__(self, *, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        # Ordered, so that a run can be repeated; a set is in the order of addresses.
        self._tasks: dict[asyncio.Task[None], Coroutine[Any, Any, None]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it starts nothing any more."""
        return self._closed

    @property
    def task_count(self) -> int:
        """How many tasks run now."""
        return len(self._tasks)

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Run ``work`` once in the background; its failure is reported, not raised.

        It begins at once where the interpreter can (3.12). Returns the task, so that whoever owns
        the work may stop it; None after `close`.
        """
        assert name, "every task has a name"
        if self._closed:
            work.close()
            return None
        options: dict[str, Any] = {"loop": asyncio.get_running_loop(), **EAGERLY}
        task = asyncio.Task(self._once(name, work), name=name, **options)
        if not task.done():
            self._tasks[task] = work
            task.add_done_callback(self._forget)
        return task

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` to its first wait at once, and what is left of it in the background.

        For short work that seldom waits: no task exists before the first wait, so until then
        ``work`` must not ask for its own (`asyncio.timeout` does).
        """
        assert name, "every task has a name"
        if self._closed:
            work.close()
            return
        try:
            awaited = work.send(None)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001  a supervisor reports whatever it is
            self._report(name, error, restarts=False)
            return
        self.spawn(name, self._go_on(work, awaited))

    async def finish(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end, whatever becomes of the caller, and return what it returns.

        Raises:
            DrainingError: This supervisor is closed, or was before the end.
            Exception: What ``work`` raised; it is reported instead when the caller has left.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = self.spawn(name, self._tell(work, done))
        if task is None:
            work.close()
            raise DrainingError("the node is shutting down; try again")
        task.add_done_callback(lambda _: self._give_up(work, done))
        return await done

    def _give_up(self, work: Coroutine[Any, Any, T], done: asyncio.Future[T]) -> None:
        work.close()  # a task that was cancelled before its first step never awaited it
        if not done.done():
            done.set_exception(DrainingError("the node is shutting down; try again"))

    async def _tell(self, work: Coroutine[Any, Any, T], done: asyncio.Future[T]) -> None:
        try:
            value = await work
            if not done.done():
                done.set_result(value)
        except Exception as error:
            if done.done():
                raise
            done.set_exception(error)

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work`` until it returns, again after each failure, with growing pauses."""
        self.spawn(name, self._restart(name, work))

    @property
    def left(self) -> tuple[str, ...]:
        """The names of tasks that `close` could not end; empty when all is well."""
        return tuple(task.get_name() for task in self._tasks) if self._closed else ()

    async def close(self) -> None:
        """Cancel every task and wait until all have ended; one that will not is left, and named.

        A task that swallows its cancellation is cancelled once more, ``STOP_TIMEOUT_MS`` later.
        """
        self._closed = True
        for _ in range(CANCELLATIONS_MAX):
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(list(self._tasks), timeout=limits.STOP_TIMEOUT_MS / 1000)
            for task in [task for task in self._tasks if task.done()]:
                self._forget(task)  # its callback may be as late as it likes
        if self._tasks:
            self._telemetry.log("error", "tasks.left", tasks=", ".join(self.left))
        assert self._closed, "nothing is spawned any more"
        assert all(not task.done() for task in self._tasks), "a task that has ended is forgotten"

    def _forget(self, task: asyncio.Task[None]) -> None:
        work = self._tasks.pop(task, None)
        if work is not None:
            work.close()  # a task that was cancelled before its first step never awaited it

    async def _go_on(self, work: Coroutine[Any, Any, None], awaited: Any) -> None:
        await Driven(work, awaited=awaited)

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
