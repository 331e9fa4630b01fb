"""An asyncio event loop without sockets, threads or waiting, for several nodes at once.

Time is a number of nanoseconds that jumps to the next timer when nothing is ready. One callback
runs per step, and a scheduler picks which. A context variable tags every callback with its node's
incarnation, so that one node can be paused or killed while the others go on. Jobs for executors
run inline, at a step of their own. Whatever would leave the simulation raises
`EscapedSimulationError`.

Invariants: time never goes back; a step runs one callback; the same choices give the same run;
nothing of a dead incarnation runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
import sys
import warnings
import weakref
from asyncio import tasks as asyncio_tasks
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Executor
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple

from kelpie.core.limits import SIMULATION_STEPS_MAX
from kelpie.sim.clock import NANOSECONDS_PER_SECOND, MachineClock
from kelpie.sim.incarnation import INCARNATION, Incarnation
from kelpie.sim.schedule import Callback, FifoScheduler, Scheduler

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
TraceStep = Callable[[Incarnation | None, int, Any], None]
"""Told of every step: whose it is, when, and its callback."""

_CLOCK_RESOLUTION_S: Final = 1e-9
_CANCELLED_TIMERS_MIN: Final = 100
_UNWIND_ATTEMPTS_MAX: Final = 1_000


class EscapedSimulationError(RuntimeError):
    """Code in the simulation tried to reach the real world."""


class StalledSimulationError(RuntimeError):
    """The awaited work is not done, but nothing can happen any more, or far too much happened."""


class SimulatedCrash(BaseException):
    """The process that runs dies here; what is above on its stack is thrown away with it.

    Not an `Exception`: no handler of the product may catch it.
    """


class SimulatedTask(asyncio.Task[Any]):
    """A task whose place in a set depends on its number, not on its address."""

    number: int

    def __hash__(self) -> int:
        return self.number


class SimulatedTimer(asyncio.TimerHandle):
    """A callback for later.

    Attributes:
        due_ns: When, on the clock of its node, or the world's.
        node: Whose it is; None for the world's.
        rank: The scheduler's own number.
    """

    __slots__ = ("due_ns", "node", "rank")

    due_ns: int
    node: Incarnation | None
    rank: float


# Tags callbacks that run at the moment they are scheduled: those who watch, not act.
_OBSERVER: Final = Incarnation("observer", 1, MachineClock(lambda: 0))


def observing() -> Context:
    """Return a context whose callbacks run inside the call that schedules them.

    For oracles that must see a commit before anybody can act on it.
    """
    context = copy_context()
    context.run(INCARNATION.set, _OBSERVER)
    return context


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs one callback per step, in virtual time.

    Attributes:
        now_ns: The world's virtual time.
        steps: How many callbacks have run.
        trace: Who is told of every step; None for nobody.
        before_step: Asked before every step of a node; it may kill the node or let time pass.
        job_delay_ns: How long the next job of an executor takes, in the world's time.
    """

    # What `asyncio.BaseEventLoop` keeps, which its type stubs leave out.
    _ready: deque[Callback]
    _stopping: bool
    _closed: bool

    def __init__(self, *, scheduler: Scheduler | None = None, start_ns: int = 0) -> None:
        super().__init__()
        self.now_ns = start_ns
        self.steps = 0
        self.trace: TraceStep | None = None
        self.before_step: Callable[[Incarnation], None] | None = None
        self.job_delay_ns: Callable[[], int] = _no_delay
        self._clock_resolution = _CLOCK_RESOLUTION_S
        self._choose = (scheduler or FifoScheduler()).choose
        self._timers: list[tuple[int, int, SimulatedTimer]] = []
        self._timers_cancelled = 0
        self._order = 0
        self._task_count = 0
        self._alarms: list[tuple[int, int, Callable[[], None]]] = []
        self._alarm = SIMULATION_STEPS_MAX
        self._jobs: dict[Executor, deque[Callable[[], None]]] = {}
        self._world_births = Incarnation("world", 1, MachineClock(lambda: self.now_ns))
        self._is_abandoned = False
        self._taken: Callback | None = None
        self._unwound: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    # --- time -----------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the seconds that the running node's monotonic clock shows, or the world's."""
        node = INCARNATION.get()
        now_ns = self.now_ns if node is None else node.clock.monotonic_ns()
        return now_ns / NANOSECONDS_PER_SECOND

    def at_step(self, step: int, action: Callable[[], None]) -> None:
        """Run ``action`` of the world right before step number ``step``."""
        assert step > self.steps, "an alarm lies ahead"
        self._order += 1
        heapq.heappush(self._alarms, (step, self._order, action))
        self._alarm = self._alarms[0][0]
        assert self._alarm <= step

    def retime(self, node: Incarnation) -> None:
        """Set the timers of ``node`` anew after its clocks were changed."""
        timers = [
            (node.clock.world_ns(timer.due_ns), order, timer)
            if timer.node is node
            else (when_ns, order, timer)
            for when_ns, order, timer in self._timers
        ]
        heapq.heapify(timers)
        assert len(timers) == len(self._timers), "no timer is lost"
        self._timers[:] = timers
        assert all(timer.due_ns >= 0 for _, _, timer in timers)

    # --- scheduling -----------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Queue a callback for a step of its own, for the node of its context."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if context is None:
            context = copy_context()
        node = context.get(INCARNATION)
        if node is _OBSERVER:
            context.run(callback, *args)
            return _make_callback(self, callback, args, context, None)
        handle = _make_callback(self, callback, args, context, node)
        if type(callback) is _TASK_STEP:
            births = node or self._world_births
            task: asyncio.Task[Any] = callback.__self__  # type: ignore[attr-defined]
            if births.dead:  # what a program begins while it is unwound never runs
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                _drop_unbegun(task.get_coro())
            elif task not in births.births:
                births.note_birth(task)
        if node is not None and node.dead:
            handle.cancel()
        else:
            self._ready.append(handle)
        assert handle.node is node, "a callback is its context's"
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Queue a callback: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Queue a callback for when the clock of its node shows ``when`` seconds."""
        if context is None:
            context = copy_context()
        node = context.get(INCARNATION)
        timer = SimulatedTimer(when, callback, args, self, context)
        timer.due_ns = round(when * NANOSECONDS_PER_SECOND)
        timer.node = node
        timer.rank = 0.0
        if node is not None and node.dead:
            timer.cancel()
            return timer
        when_ns = timer.due_ns if node is None else node.clock.world_ns(timer.due_ns)
        self._order += 1
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001
        assert timer.rank == 0.0, "no scheduler has seen it"
        heapq.heappush(self._timers, (when_ns, self._order, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Queue a callback for ``delay`` seconds from now."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """Return a task whose default name and hash depend on its number alone."""
        assert not self._closed, "a closed loop begins nothing"
        self._task_count += 1
        shown = f"task-{self._task_count}" if name is None else str(name)
        options: dict[str, Any] = {} if context is None else {"context": context}
        task = SimulatedTask.__new__(SimulatedTask)
        task.number = self._task_count
        SimulatedTask.__init__(task, coro, loop=self, name=shown, **options)
        assert hash(task) == self._task_count, "a task's place in a set is its number"
        return task

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run ``func`` at a later step; jobs of one executor in the order they were given.

        Executors of the product have one thread each; the default one has many, so its jobs run
        in any order.
        """
        future: asyncio.Future[T] = self.create_future()
        job = partial(self._run_job, executor, future, func, args)
        if executor is None:
            self._begin_job(job)
            return future
        lane = self._jobs.get(executor)
        if lane is None:
            self._jobs[executor] = deque()
            self._begin_job(job)
        else:
            # A job begins in the context of who gave it, not of who ended the one before.
            assert executor is not None, "the default executor has no order"
            context = copy_context()
            lane.append(lambda: context.run(self._begin_job, job))
        return future

    def _begin_job(self, job: Callable[[], None]) -> None:
        delay_ns = self.job_delay_ns()
        if delay_ns:
            self.call_later(delay_ns / NANOSECONDS_PER_SECOND, job)
        else:
            self.call_soon(job)

    def _run_job(
        self,
        executor: Executor | None,
        future: asyncio.Future[Any],
        func: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        if executor is not None:
            lane = self._jobs.get(executor)
            if lane:
                lane.popleft()()
            else:
                self._jobs.pop(executor, None)
        if future.cancelled():
            return
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001  handed to the awaiting caller
            future.set_exception(error)
        else:
            future.set_result(result)

    # --- steps ----------------------------------------------------------------------------------

    def _run_once(self) -> None:
        """Take steps until somebody stops the loop."""
        ready = self._ready
        timers = self._timers
        while not self._stopping:
            if timers and (not ready or timers[0][0] <= self.now_ns):
                self._wake_timers()
            if self.steps + 1 >= self._alarm:
                self._ring()
            elif len(ready) > 1:
                self._take_step(self._take(self._choose(ready)))
            elif ready:
                self._take_step(ready.popleft())
            elif not timers:
                raise StalledSimulationError(f"nothing can happen any more at {self.now_ns} ns")

    def _take(self, index: int) -> Callback:
        # No frame may keep a callback beyond its step: it would keep alive what a dead node had.
        handle = self._ready[index]
        del self._ready[index]
        return handle

    def _take_step(self, handle: Callback) -> None:
        if handle._cancelled:  # noqa: SLF001  as asyncio's own loop does
            return
        node = handle.node
        if node is not None:
            if node.blocked:
                assert not node.dead, "nothing of the dead waits for a step"
                node.held.append(handle)
                return
            if self.before_step is not None:
                self._taken = handle
                self.before_step(node)
                self._taken = None
                if node.dead:
                    return
        self.steps += 1
        if self.trace is not None:
            self.trace(node, self.now_ns, handle._callback)  # type: ignore[attr-defined]  # noqa: SLF001
        handle._run()  # noqa: SLF001

    def _ring(self) -> None:
        if self.steps >= SIMULATION_STEPS_MAX - 1:
            raise StalledSimulationError(f"it does not end within {SIMULATION_STEPS_MAX:,} steps")
        _, _, action = heapq.heappop(self._alarms)
        self._alarm = self._alarms[0][0] if self._alarms else SIMULATION_STEPS_MAX
        action()

    def _wake_timers(self) -> None:
        """Move due timers to the ready queue; when nothing is ready, jump to the next one."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:  # noqa: SLF001
            heapq.heappop(timers)
            self._timers_cancelled -= 1
        if timers and not self._ready:
            self.now_ns = max(self.now_ns, timers[0][0])
        while timers and timers[0][0] <= self.now_ns:
            timer = heapq.heappop(timers)[2]
            timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
            if timer._cancelled:  # noqa: SLF001
                self._timers_cancelled -= 1
            else:
                self._ready.append(timer)  # type: ignore[arg-type]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if not handle._scheduled:  # type: ignore[attr-defined]  # noqa: SLF001
            return
        self._timers_cancelled += 1
        if self._timers_cancelled > max(_CANCELLED_TIMERS_MIN, len(self._timers) // 2):
            self._timers[:] = [each for each in self._timers if not each[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    # --- nodes ----------------------------------------------------------------------------------

    def pause(self, node: Incarnation) -> None:
        """Hold every callback of ``node`` until `resume`, as SIGSTOP does; harmless when held."""
        assert not node.dead, "the dead are not paused"
        node.blocked = True
        assert node.blocked
        assert node is not INCARNATION.get(), "nobody stops itself and goes on"

    def resume(self, node: Incarnation) -> None:
        """Let what was held run, in its order; harmless when nothing is."""
        assert not node.dead, "the dead do not go on"
        node.blocked = False
        assert not self._closed, "a closed loop runs nothing"
        self._ready.extend(node.held)  # type: ignore[arg-type]
        node.held.clear()
        assert not node.held

    def kill(self, node: Incarnation) -> None:
        """Throw away everything of ``node``, as SIGKILL does; the others do not notice.

        Whatever could still act on the world (a store, a file) must be abandoned before. Every
        coroutine is unwound here, in order of birth, so that no finaliser runs later.
        """
        assert not node.dead, "nobody dies twice"
        node.dead = node.blocked = True
        for handle in (*node.held, *self._ready):
            if handle._context.get(INCARNATION) is node:  # type: ignore[attr-defined]  # noqa: SLF001
                _silence_futures(handle)
        node.held.clear()
        if self._taken is not None and self._taken.node is node:
            self._taken.cancel()  # lets go of what it would have delivered
        alive = [handle for handle in self._ready if handle.node is not node]
        self._ready.clear()
        self._ready.extend(alive)
        self._timers[:] = [each for each in self._timers if each[2].node is not node]
        heapq.heapify(self._timers)
        self._timers_cancelled = sum(each[2].cancelled() for each in self._timers)
        before = asyncio._get_running_loop()  # noqa: SLF001
        # It may die after the run, and what cleans up asks for the loop.
        asyncio._set_running_loop(self)  # noqa: SLF001
        try:
            self._unwind(node, node.context())
        finally:
            asyncio._set_running_loop(before)  # noqa: SLF001
        assert all(handle.node is not node for handle in self._ready), "the dead schedule nothing"

    def abandon(self) -> None:
        """Throw away everything that is left, and close the loop."""
        assert not self.is_running(), "a loop is abandoned from outside of it"
        self._is_abandoned = True
        self._unwind(self._world_births, copy_context())
        self._ready.clear()
        self._timers.clear()
        self._alarms.clear()
        self._jobs.clear()
        self.close()
        assert not self._ready, "unwinding a dead world scheduled new work"

    def _unwind(self, node: Incarnation, context: Context) -> None:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            while births := [*node.births, *self._find_eager(context.get(INCARNATION))]:
                node.births.clear()
                for task in births:
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                    if not task.done():
                        context.run(_unwind, task)

    def _find_eager(self, node: Incarnation | None) -> list[asyncio.Task[Any]]:
        """Return the tasks of ``node`` that began without a step of the loop, by name."""
        if not hasattr(asyncio.Task, "get_context"):
            return []  # before Python 3.12 every task begins with a step
        waiting: list[Any] = [task for task in asyncio.all_tasks(self) if not task.done()]
        mine = [task for task in waiting if task.get_context().get(INCARNATION) is node]
        known = self._unwound
        fresh = [task for task in mine if task not in known]
        known.update(fresh)
        return sorted(fresh, key=lambda task: str(task.get_name()))

    # --- what asyncio asks of a loop ------------------------------------------------------------

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        """Track nothing: a generator that is left is closed by its reader or dies with its node."""

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        node = INCARNATION.get()
        if not self._is_abandoned and (node is None or not node.dead):
            self.call_soon(self.create_task, agen.aclose())

    def _process_events(self, event_list: Any) -> None:
        del event_list
        raise EscapedSimulationError("the simulated loop has no selector")

    def _write_to_self(self) -> None:
        return


def _make_callback(
    loop: SimulatedLoop, callback: Any, args: Any, context: Context, node: Incarnation | None
) -> Callback:
    handle: Any = Callback.__new__(Callback)
    handle._callback = callback  # noqa: SLF001  what asyncio.Handle keeps
    handle._args = args  # noqa: SLF001
    handle._context = context  # noqa: SLF001
    handle._loop = loop  # noqa: SLF001
    handle._cancelled = False  # noqa: SLF001
    handle._repr = None  # noqa: SLF001
    handle._source_traceback = None  # noqa: SLF001
    handle.node = node
    handle.rank = 0.0
    result: Callback = handle
    return result


def _silence_futures(handle: asyncio.Handle) -> None:
    """Look at the failures that a dead process was about to hear of: nobody reports them."""
    for argument in handle._args or ():  # noqa: SLF001  a cancelled one has none
        if isinstance(argument, asyncio.Future) and argument.done() and not argument.cancelled():
            argument.exception()


def _no_delay() -> int:
    return 0


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


async def attempt(work: Awaitable[T]) -> T | Exception:
    """Return what ``work`` returns or raises: for the world, which outlives what it watches."""
    try:
        return await work
    except Exception as error:  # noqa: BLE001  handed to whoever watches
        return error


def _find_task_step() -> type:
    """Return the type of the callback with which a task takes its first step."""
    found: list[Any] = []

    class Probe(asyncio.BaseEventLoop):
        def call_soon(self, callback: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
            found.append(type(callback))

    async def nothing() -> None:
        """Take no step."""

    work = nothing()
    loop = Probe()
    task = asyncio.Task(work, loop=loop)
    asyncio_tasks._unregister_task(task)  # noqa: SLF001
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
    work.close()
    loop.close()
    kind: type = found[0]
    return kind


_TASK_STEP: Final = _find_task_step()


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
    coro = task.get_coro()
    _drop_unbegun(coro)
    for _ in range(_UNWIND_ATTEMPTS_MAX):
        try:
            # Thrown, not closed: closing leaves behind whatever waits again while it cleans up.
            coro.throw(SimulatedCrash())
        except BaseException:  # noqa: BLE001  a dead process reports nothing
            return
    raise AssertionError(f"{coro!r} cannot be unwound")


def _drop_unbegun(coro: Any) -> None:
    """Close the coroutines that one which never began was given to await."""
    if inspect.iscoroutine(coro) and inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
        given = coro.cr_frame.f_locals if coro.cr_frame is not None else {}
        for value in list(given.values()):
            if inspect.iscoroutine(value):
                _drop_unbegun(value)
        coro.close()
