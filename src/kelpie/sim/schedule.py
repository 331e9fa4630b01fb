"""Schedulers: which of the ready callbacks runs next, and a tape of what was chosen.

Invariants: a scheduler chooses from what it is shown and from its own seeded numbers alone; the
same seed and the same ready queues give the same choices.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, Protocol, cast, get_args

from kelpie.sim.incarnation import Incarnation

SchedulerName = Literal["random", "fifo", "pct", "delay-bounded"]
SCHEDULER_NAMES: Final[tuple[SchedulerName, ...]] = get_args(SchedulerName)

_STEPS_EXPECTED: Final = 20_000  # points of change are drawn from this many choices
_DELAYED: Final = -1.0


class Callback(asyncio.Handle):
    """A callback that waits for its step, with what a scheduler noted on it.

    Attributes:
        node: Whose it is; None for the world's.
        rank: The scheduler's own number; 0.0 until it has looked at the callback.
    """

    __slots__ = ("node", "rank")

    node: Incarnation | None
    rank: float


class Scheduler(Protocol):
    """Chooses the next callback."""

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return the index of the one to run; ``ready`` has two or more, in order of arrival."""
        ...


class FifoScheduler:
    """Chooses as asyncio does: first in, first out."""

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return the first."""
        del ready
        return 0


class RandomScheduler:
    """Chooses any, each as likely as the others."""

    def __init__(self, rng: random.Random) -> None:
        self._draw = rng.random

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return any."""
        return int(self._draw() * len(ready))


class PctScheduler:
    """Chooses by random priorities per task, which fall at ``depth - 1`` random points.

    Finds a bug that needs ``depth`` ordering constraints with a probability that is known, however
    long the run is. Source: Burckhardt and others, "A Randomized Scheduler with Probabilistic
    Guarantees of Finding Bugs", ASPLOS 2010.
    """

    def __init__(self, rng: random.Random, *, depth: int) -> None:
        assert depth >= 1, "a bug has a depth"
        self._rng = rng
        self._changes = {rng.randrange(_STEPS_EXPECTED): index for index in range(depth - 1)}
        self._count = 0
        # A task that is gone must not keep what it waited for, as a store that was being opened.
        self._ranks: weakref.WeakKeyDictionary[asyncio.Task[object], float]
        self._ranks = weakref.WeakKeyDictionary()

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return the one of the highest priority."""
        assert len(ready) > 1, "there is a choice"
        for callback in ready:
            if not callback.rank:
                callback.rank = self._rank(callback)
        best = max(range(len(ready)), key=lambda index: ready[index].rank)
        assert ready[best].rank, "everything has its rank"
        self._count += 1
        change = self._changes.get(self._count)
        task = task_of(ready[best])
        if change is not None and task is not None:
            # Below every first priority, which lie in [1, 2).
            self._ranks[task] = 1.0 / (change + 2)
        return best

    def _rank(self, callback: Callback) -> float:
        task = task_of(callback)
        if task is None:
            return 1.0 + self._rng.random()
        rank = self._ranks.get(task)
        if rank is None:
            rank = self._ranks[task] = 1.0 + self._rng.random()
        return rank


class DelayBoundedScheduler:
    """Chooses as asyncio does, but ``bound`` times it lets a callback wait until nothing else can.

    Most bugs of a schedule need few such delays. Source: Emmi, Qadeer and Rakamaric, "Delay-bounded
    scheduling", POPL 2011.
    """

    def __init__(self, rng: random.Random, *, bound: int) -> None:
        assert bound >= 0, "a bound is not negative"
        self._delays = {rng.randrange(_STEPS_EXPECTED) for _ in range(bound)}
        self._count = 0

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return the first that is not delayed."""
        assert len(ready) > 1, "there is a choice"
        self._count += 1
        if self._count in self._delays:
            ready[0].rank = _DELAYED
        assert self._count > 0
        for index, callback in enumerate(ready):
            if callback.rank != _DELAYED:
                return index
        return 0


class ChoiceTape:
    """What was chosen, wherever there was a choice. Choosing 0 for ever is what asyncio does.

    A tape that was edited still replays: a choice beyond what is ready takes the last, and the end
    of the tape goes on with 0.
    """

    def __init__(self, choices: Iterable[int] = ()) -> None:
        self.choices = array("I", choices)

    def __len__(self) -> int:
        return len(self.choices)

    def edited(self, start: int, end: int, choice: int = 0) -> ChoiceTape:
        """Return a copy with ``choice`` at the positions from ``start`` to below ``end``."""
        assert 0 <= start <= end <= len(self.choices), "an edit lies on the tape"
        tape = ChoiceTape(self.choices)
        for position in range(start, end):
            tape.choices[position] = choice
        assert len(tape) == len(self)
        return tape


class RecordingScheduler:
    """Chooses as another scheduler does, and writes it on a tape."""

    def __init__(self, inner: Scheduler, tape: ChoiceTape) -> None:
        self._choose = inner.choose
        self._note = tape.choices.append

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return what the other chose."""
        index = self._choose(ready)
        self._note(index)
        return index


class ReplayScheduler:
    """Chooses what a tape says."""

    def __init__(self, tape: ChoiceTape) -> None:
        self._choices = iter(tape.choices)

    def choose(self, ready: Sequence[Callback]) -> int:
        """Return the tape's next choice, or the nearest there is."""
        return min(next(self._choices, 0), len(ready) - 1)


def make_scheduler(name: SchedulerName, rng: random.Random, *, depth: int = 3) -> Scheduler:
    """Return the scheduler of this name; ``depth`` bounds its surprises where it has a bound."""
    assert name in SCHEDULER_NAMES, f"no scheduler is called {name}"
    match name:
        case "fifo":
            return FifoScheduler()
        case "random":
            return RandomScheduler(rng)
        case "pct":
            return PctScheduler(rng, depth=depth)
        case "delay-bounded":
            return DelayBoundedScheduler(rng, bound=depth)


def task_of(handle: asyncio.Handle) -> asyncio.Task[object] | None:
    """Return the task that the callback steps; None when it is a plain function."""
    owner: Any = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]  # noqa: SLF001
    return cast("asyncio.Task[object]", owner) if isinstance(owner, asyncio.Task) else None
