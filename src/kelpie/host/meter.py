"""The host's meter: the kernel's accounts of a thread, and the interpreter's collections.

Owns a hook of the garbage collector from its making to `close`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import time
from pathlib import Path
from typing import Final, Literal

from kelpie.ports.meter import ThreadUse

_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")  # cpu ns, queued ns, slices


class HostMeter:
    """Implements the meter port. Read it on the thread that made it; `close` it."""

    def __init__(self) -> None:
        self._collecting_ns = 0
        self._began_ns = 0
        self._accounts: int | None = None
        with contextlib.suppress(OSError):  # kernels without these accounts know no queue
            self._accounts = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        gc.callbacks.append(self._on_collection)

    def read(self) -> ThreadUse:
        """Return the totals of now."""
        return ThreadUse(
            cpu_ns=time.thread_time_ns(),
            queued_ns=self._read_queued_ns(),
            collecting_ns=self._collecting_ns,
            waits=resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw,
        )

    def _read_queued_ns(self) -> int:
        if self._accounts is None:
            return 0
        fields = os.pread(self._accounts, 128, 0).split()
        return int(fields[1]) if len(fields) == 3 else 0

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
        if self._accounts is not None:
            os.close(self._accounts)
            self._accounts = None
