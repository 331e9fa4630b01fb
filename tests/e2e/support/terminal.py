"""A terminal with a person at it, who reads what a program shows and types."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SHOW_S = 20.0
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A program on a pseudo-terminal that is its controlling one; leaving the context ends it."""

    def __init__(self, argv: Sequence[str], *, environment: Mapping[str, str], cwd: Path) -> None:
        self._shown = b""
        self._seen = 0
        self._descriptor, slave = pty.openpty()
        self._popen = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            env=dict(environment) | {"TERM": "xterm", "COLUMNS": "100"},
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The program leads a session of its own, and hangs up with its terminal.
        os.close(self._descriptor)
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        self._popen.wait(SHOW_S)

    @property
    def shown(self) -> str:
        """Everything it has shown, without colours."""
        text = self._shown.decode("utf-8", errors="replace").replace("\r\n", "\n")
        return _STYLE.sub("", text)

    def await_text(self, text: str, *, within_s: float = SHOW_S) -> str:
        """Returns what was shown since the last call, once `text` is in it.

        Raises:
            AssertionError: if it is not shown in time.
        """
        ends = time.monotonic() + within_s
        while text not in self.shown[self._seen :]:
            left_s = ends - time.monotonic()
            assert left_s > 0, f"{text!r} was not shown: {self.shown}"
            assert self._read(left_s) or text in self.shown, f"ended: {self.shown}"
        fresh = self.shown[self._seen :]
        self._seen += fresh.index(text) + len(text)
        return fresh

    def type(self, text: str) -> None:
        """Types a line."""
        os.write(self._descriptor, text.encode() + b"\n")

    def press(self, key: bytes) -> None:
        """Presses a control key: `b"\\x03"` is Ctrl-C, `b"\\x04"` is Ctrl-D."""
        os.write(self._descriptor, key)

    def await_end(self) -> int:
        """Returns the exit status once the program has ended."""
        while self._read(SHOW_S):
            pass
        return self._popen.wait(SHOW_S)

    def _read(self, timeout_s: float) -> bool:
        """Reads what is there; False at the end of the program."""
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        assert ready, f"nothing more was shown: {self.shown}"
        try:
            chunk = os.read(self._descriptor, 65_536)
        except OSError:  # Linux says EIO once the last process has closed its side
            return False
        self._shown += chunk
        return bool(chunk)
