"""Ctrl-C in a conversation: the first ends what is being waited for, a second one leaves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from kelpie.cli.errors import bare_error

R = TypeVar("R")


class WaitInterrupted(Exception):  # noqa: N818 - not an error: a person changed their mind
    """Ctrl-C ended a wait."""


class Interrupts:
    """Counts Ctrl-C; ``leaving`` once two came without anything finished in between."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._count = 0

    @property
    def leaving(self) -> bool:
        """Whether the second Ctrl-C has come."""
        return self._count >= 2

    async def guard(self, work: Coroutine[Any, Any, R]) -> R:
        """Return what ``work`` returns.

        Raises:
            WaitInterrupted: Ctrl-C came first; ``work`` is cancelled.
        """
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work)
                self._task = task
        except BaseExceptionGroup as errors:
            raise bare_error(errors) from None
        finally:
            self._task = None
        if task.cancelled():
            raise WaitInterrupted
        self._count = 0
        return task.result()

    @asynccontextmanager
    async def installed(self) -> AsyncGenerator[None, None]:
        """Take over Ctrl-C for as long as the context is open."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.press)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def press(self) -> None:
        """Act as Ctrl-C does."""
        self._count += 1
        if self._task is not None:
            self._task.cancel()
