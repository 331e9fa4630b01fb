"""Wakes readers of event logs and streams once something they may want is durable.

A wake-up is a hint: readers always read the store by cursor, so a lost or extra hint costs time,
never data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, Protocol

from kelpie.core.ids import ActorId

_ALL: Final = None


class Watch:
    """One reader's wake-up flag."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Set the flag."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Return True once something may be new, False after ``timeout_s``; clears the flag."""
        assert timeout_s >= 0, "a wait is not negative"
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        assert self._event.is_set(), "two readers share one watch"
        self._event.clear()
        return True


class WantListener(Protocol):
    """Told whose news are wanted by a first reader, or no longer by the last one."""

    def __call__(self, actor: ActorId | None, *, is_wanted: bool) -> None:
        """Note it; None in place of an actor stands for all of them."""
        ...


class EventHub:
    """Who waits for which actor's news."""

    def __init__(self) -> None:
        # Groups are ordered, so that a run can be repeated; a set is in the order of addresses.
        self._watches: dict[ActorId | None, dict[Watch, None]] = {}
        self._listener: WantListener | None = None
        self._relay: Callable[[ActorId], None] | None = None

    def relay(self, relay: Callable[[ActorId], None]) -> None:
        """Tell the one relay of all that is announced here, for readers elsewhere."""
        assert self._relay is None, "there is one relay"
        self._relay = relay
        assert self._relay is not None

    def announce(self, actor: ActorId) -> None:
        """Wake whoever may want to read about ``actor``, here and elsewhere: it is news of ours."""
        self.publish(actor)
        if self._relay is not None:
            self._relay(actor)

    def listen(self, listener: WantListener) -> None:
        """Tell the one listener whose news are wanted here, now and from now on."""
        assert self._listener is None, "there is one listener"
        self._listener = listener
        for actor in self._watches:
            listener(actor, is_wanted=True)

    @contextmanager
    def watch(self, actor: ActorId | None = None) -> Generator[Watch]:
        """Yield a watch on one actor, or on all of them."""
        watch = Watch()
        is_first = actor not in self._watches
        group = self._watches.setdefault(actor, {})
        group[watch] = None
        if is_first and self._listener is not None:
            self._listener(actor, is_wanted=True)
        try:
            yield watch
        finally:
            assert watch in group, "a watch lasts until its reader leaves"
            del group[watch]
            if not group and self._watches.get(actor) is group:
                del self._watches[actor]
                if self._listener is not None:
                    self._listener(actor, is_wanted=False)
            assert watch not in self._watches.get(actor, ()), "a reader who left is still woken"

    def publish(self, actor: ActorId) -> None:
        """Wake everyone here who may want to read about ``actor``."""
        if not self._watches:
            return
        for key in (actor, _ALL):
            for watch in self._watches.get(key, ()):
                watch.wake()
