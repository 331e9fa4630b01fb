"""Processes that a test starts, each ended by its own id when its owner is done with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

END_S = 30.0


class Process:
    """One running process; what it prints goes to two files beside each other."""

    def __init__(
        self, argv: Sequence[str], *, environment: Mapping[str, str], cwd: Path, output: Path
    ) -> None:
        self._argv = " ".join(argv)
        self.out_path = output.with_suffix(".out")
        self.err_path = output.with_suffix(".err")
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self._popen = subprocess.Popen(
                argv,
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    @property
    def out(self) -> str:
        """What it has printed to stdout so far."""
        return self.out_path.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What it has printed to stderr so far."""
        return self.err_path.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal; one that has ended gets none."""
        if self.status is None:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """Ends it with SIGKILL."""
        self.send(signal.SIGKILL)
        self._popen.wait(END_S)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end, and returns its exit status.

        Raises:
            AssertionError: if it does not end in time; then it is killed.
        """
        self.send(number)
        return self.wait()

    def wait(self, within_s: float = END_S) -> int:
        """Returns its exit status once it has ended by itself.

        Raises:
            AssertionError: if it has not ended in time; then it is killed.
        """
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self._argv} did not end: {self.err}") from None

    def await_out(self, text: str, *, within_s: float = END_S) -> str:
        """Returns what it has printed once `text` is on stdout."""
        eventually(
            lambda: text in self.out or self.status is not None,
            within_s=within_s,
            what=f"{text!r} on stdout of {self._argv}",
        )
        assert text in self.out, f"ended with {self.status}: {self.out} {self.err}"
        return self.out


def is_alive(pid: int) -> bool:
    """Whether a process of this id exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def find_processes(text: str) -> list[int]:
    """The ids of the processes whose command line holds `text`, this one excepted."""
    found: list[int] = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit() or int(place.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if text.encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found
