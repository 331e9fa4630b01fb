"""What a command waits for, said once an answer takes longer than a person expects.

Says one line per command, and only what it has looked up: a slow model behind a healthy server is
no reason to speak.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Final

from kelpie.cli.processes import STOPPED, process_state

PATIENCE_S: Final = 2.0


class Patience:
    """Speaks once when ``who`` has not answered for a while; ``pid`` is 0 for somebody elsewhere.

    ``find_state`` returns a process's state as proc(5) writes it.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        who: str,
        pid: int = 0,
        find_state: Callable[[int], str] | None = None,
    ) -> None:
        self._say = say
        self._who = who
        self._pid = pid
        self._find_state = find_state or process_state
        self._has_spoken = False

    @contextmanager
    def during(self, *, may_be_long: bool) -> Generator[None, None, None]:
        """Speak if the context is open for longer than a person expects."""
        speak = partial(self.speak, may_be_long=may_be_long)
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, speak)
        try:
            yield
        finally:
            timer.cancel()

    def speak(self, *, may_be_long: bool) -> None:
        """Say what is waited for, unless that was said before.

        Where the answer ``may_be_long`` in coming, only a process that is stopped is worth a word.
        """
        if self._has_spoken:
            return
        if self._pid and self._find_state(self._pid) in STOPPED:
            self._has_spoken = True
            self._say(f"kelpie: {self._who} is stopped; it answers after: kill -CONT {self._pid}")
        elif not may_be_long:
            self._has_spoken = True
            self._say(f"kelpie: waiting for {self._who}; Ctrl-C ends the wait")
