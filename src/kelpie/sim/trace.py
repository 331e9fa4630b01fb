"""The trace of a run: what happened when and where, folded into one hash.

Holds no path, no address and no object's id, so that it is equal across processes, directories and
values of PYTHONHASHSEED.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Any, Final, cast

from kelpie.sim.incarnation import Incarnation

_LINES_MAX: Final = 2_048  # lines that wait to be hashed together


class Trace:
    """Folds lines into a hash, and keeps them when asked to.

    Attributes:
        lines: Every line of the run, oldest first; empty unless they are kept.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.lines: list[str] = []
        self._keep = keep
        self._hash = hashlib.blake2b(digest_size=16)
        self._waiting: list[str] = []

    def step(self, node: Incarnation | None, now_ns: int, callback: Any) -> None:
        """Note one step of the loop."""
        assert now_ns >= 0, "time is not negative"
        self._waiting.append(f"{node} {now_ns} {_name_of(callback)}\n")
        if len(self._waiting) >= _LINES_MAX:
            self._fold()
        assert len(self._waiting) < _LINES_MAX, "lines wait without bound"

    def note(self, kind: str, text: str | bytes) -> None:
        """Note something beside the steps: a commit, a fault, what a client was told."""
        assert kind, "a note has a kind"
        shown = text if isinstance(text, str) else hashlib.blake2b(text, digest_size=8).hexdigest()
        self._waiting.append(f"{kind} {shown}\n")
        assert self._waiting, "a note waits to be folded"

    def digest(self) -> str:
        """Return the hash of everything noted so far."""
        self._fold()
        return self._hash.hexdigest()

    def _fold(self) -> None:
        self._hash.update("".join(self._waiting).encode())
        if self._keep:
            self.lines.extend(self._waiting)
        self._waiting.clear()


def _name_of(callback: Any) -> str:
    """Return a callback's qualified name; for a task's step, that of its coroutine."""
    owner: Any = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coro: Any = cast("asyncio.Task[object]", owner).get_coro()
        return f"{owner.get_name()} {getattr(coro, '__qualname__', '')}"
    while isinstance(callback, partial):
        callback = callback.func
    name: str = getattr(callback, "__qualname__", type(callback).__name__)
    return name
