"""Keeps the garbage collector's pauses short, however much is in memory.

A full collection looks at every container that is alive: a quarter of a microsecond each, so most
of a second over a million resident actors, and hardly any of them is garbage. Here whatever lives
when serving begins, and whatever survives a full collection later, leaves the collector's sight
(`gc.freeze`), and full collections come after so much growth that each stays a few milliseconds.
What is frozen is still freed by its reference count. Its price: objects that were frozen and later
become garbage in a cycle are kept until the last `short_pauses` ends.

Owns the collector's thresholds and one callback of the process; gives both back at the end.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

THRESHOLDS: Final = (2_000, 4, 2)
"""A full collection after 2,000 * 5 * 3 containers more: 30,000 of them take about 8 ms."""

_OLDEST: Final = 2  # the generation of a full collection


class _Keeper:
    """How many want short pauses, and what was set before the first of them."""

    def __init__(self) -> None:
        self.users = 0
        self.before = (0, 0, 0)

    def enter(self) -> None:
        """Take the collector over if nobody has, and freeze what is alive."""
        assert self.users >= 0
        if self.users == 0:
            self.before = gc.get_threshold()
            gc.set_threshold(*THRESHOLDS)
            gc.callbacks.append(_freeze_survivors)
        self.users += 1
        gc.collect(_OLDEST - 1)
        gc.freeze()
        assert _freeze_survivors in gc.callbacks

    def leave(self) -> None:
        """Give the collector back as it was when the last one leaves."""
        assert self.users >= 1, "left more often than entered"
        self.users -= 1
        if self.users == 0:
            gc.callbacks.remove(_freeze_survivors)
            gc.set_threshold(*self.before)
            gc.unfreeze()
        assert self.users >= 0


_keeper: Final = _Keeper()


@contextmanager
def short_pauses() -> Generator[None]:
    """Keep the collector's pauses short inside; may be entered several times."""
    _keeper.enter()
    try:
        yield
    finally:
        _keeper.leave()


def _freeze_survivors(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == _OLDEST:
        gc.freeze()
