"""An asyncio event loop without sockets, threads or waiting.

Time is a number that jumps to the next timer when nothing is ready. One callback runs per step, and
``choose`` picks which. Executors run inline. Whatever would leave the simulation raises
`EscapedSimulationError`.

Invariants: time never goes back; a step runs exactly one callback; the same choices give the same
run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import Any, Final, TypeVar, TypeVarTuple

from kelpie.core.limits import SIMULATION_STEPS_MAX

Choose = Callable[[int], int]
"""Given how many callbacks are ready, return the index of the one to run."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CLOCK_RESOLUTION_S: Final = 1e-9


class EscapedSimulationError(RuntimeError):
    """Code in the simulation tried to reach the real world."""


class StalledSimulationError(RuntimeError):
    """Nothing is ready and no timer is set, but the awaited work is not done."""


class SimulatedCrash(BaseException):
    """The simulated process died at this step; no further callback runs.

    Not an `Exception`: no handler of the product may catch it.
    """


def first_in_first_out(_: int) -> int:
    """Choose as asyncio does."""
    return 0


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs one callback per step, in virtual time.

    Attributes:
        steps: How many callbacks have run.
        crash_at: The step at which the process dies, 0 for never.
    """

    # What `asyncio.BaseEventLoop` keeps, which its type stubs leave out.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self, *, choose: Choose = first_in_first_out, start_s: float = 0.0) -> None:
        super().__init__()
        self.steps = 0
        self.crash_at = 0
        self._abandoned = False
        self._choose = choose
        self._now_s = start_s
        self._clock_resolution = _CLOCK_RESOLUTION_S
        self._born: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Return virtual seconds."""
        return self._now_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run ``func`` now and return a finished future."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  handed to the awaiting caller
            future.set_exception(error)
        return future

    def abandon(self) -> None:
        """Throw away everything that was running, as a dead process does, and close the loop.

        Whatever could still act on the world (a store, a file) must be abandoned before. Every
        coroutine is unwound here, in order of birth, so that no finaliser runs later.
        """
        assert not self.is_running(), "a loop is abandoned from outside of it"
        self._abandoned = True
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            for task in self._born:
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                if not task.done():
                    _unwind(task)
            self._born.clear()
            self._ready.clear()
            self._scheduled.clear()
            self.close()
            gc.collect()
        assert not self._ready, "unwinding a dead process scheduled new work"

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        """Track nothing: a generator that is left is closed by its reader or dies with the loop."""

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        if not self._abandoned:
            self.call_soon(self.create_task, agen.aclose())

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        self._born.append(task)
        if len(self._born) > 4096:
            self._born = [each for each in self._born if not each.done()]
        return task

    def _run_once(self) -> None:
        self.steps += 1
        assert self.steps <= SIMULATION_STEPS_MAX, "the simulation does not end"
        if self.crash_at and self.steps >= self.crash_at:
            raise SimulatedCrash
        self._wake_timers()
        count = len(self._ready)
        if count == 0:
            return
        index = self._choose(count) if count > 1 else 0
        assert 0 <= index < count, "a choice outside what is ready"
        self._ready.rotate(-index)
        handle = self._ready.popleft()
        self._ready.rotate(index)
        if not handle._cancelled:  # noqa: SLF001  as asyncio's own loop does
            handle._run()  # noqa: SLF001

    def _wake_timers(self) -> None:
        """Move due timers to the ready queue; when nothing is ready, jump to the next one."""
        while self._scheduled and self._scheduled[0]._cancelled:  # noqa: SLF001
            heapq.heappop(self._scheduled)._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
        if not self._ready and not self._stopping:
            if not self._scheduled:
                raise StalledSimulationError(f"nothing can happen any more at {self._now_s} s")
            self._now_s = max(self._now_s, self._scheduled[0].when())
        while self._scheduled and self._scheduled[0].when() <= self._now_s:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
            if not timer._cancelled:  # noqa: SLF001
                self._ready.append(timer)

    def _process_events(self, event_list: Any) -> None:
        del event_list
        raise EscapedSimulationError("the simulated loop has no selector")

    def _write_to_self(self) -> None:
        return


def _escape(*_: Any, **__: Any) -> Any:
    raise EscapedSimulationError("real sockets and processes do not exist in the simulation")


_ESCAPES: Final = (
    "add_reader",
    "add_writer",
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "getaddrinfo",
    "sock_accept",
    "sock_connect",
    "sock_recv",
    "sock_sendall",
    "subprocess_exec",
    "subprocess_shell",
)
for _name in _ESCAPES:
    setattr(SimulatedLoop, _name, _escape)


@contextlib.contextmanager
def _silence() -> Generator[None]:
    """Let what breaks while a dead process is unwound break in silence."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _unwind(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(BaseException):  # a dead process reports nothing
        task.get_coro().close()
