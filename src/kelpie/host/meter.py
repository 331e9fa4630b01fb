"""The host's meter: the kernel's accounts of a thread, and the interpreter's collections.

Owns a hook of the garbage collector from its making to `close`.
"""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from pathlib import Path
from typing import Final, Literal

from kelpie.ports.meter import ThreadUse

_THREADS: Final = Path("/proc/self/task")


class HostMeter:
    """Implements the meter port. Read it on the thread that made it; `close` it."""

    def __init__(self) -> None:
        self._collecting_ns = 0
        self._began_ns = 0
        gc.callbacks.append(self._on_collection)

    def read(self) -> ThreadUse:
        """Return the totals of now."""
        return ThreadUse(
            cpu_ns=time.thread_time_ns(),
            queued_ns=_read_queued_ns(),
            collecting_ns=self._collecting_ns,
            waits=resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw,
        )

    def _on_collection(self, phase: Literal["start", "stop"], _: dict[str, int]) -> None:
        if phase == "start":
            self._began_ns = time.perf_counter_ns()
        elif self._began_ns:
            self._collecting_ns += time.perf_counter_ns() - self._began_ns
            self._began_ns = 0

    def close(self) -> None:
        """Let go of the collector's hook; harmless when done before."""
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)


def _read_queued_ns() -> int:
    """Return how long threads of this process were ready and did not run; 0 where unknown."""
    queued_ns = 0
    # A thread may end meanwhile, and a kernel may keep no such accounts.
    with contextlib.suppress(OSError):
        for thread in _THREADS.iterdir():
            fields = (thread / "schedstat").read_bytes().split()  # cpu ns, queued ns, slices
            queued_ns += int(fields[1])
    return queued_ns
