"""What the running thread has used, as a port: tells work from waiting from being held up."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class ThreadUse(NamedTuple):
    """Totals of the calling thread since it began; only differences mean anything.

    Attributes:
        cpu_ns: Processor time, collections included.
        queued_ns: Time in which threads of the process could have run and the machine ran something
            else; 0 where unknown. Of all threads, because one may hold what this one waits for: the
            interpreter's lock.
        collecting_ns: Time in the garbage collector, of whatever thread.
        waits: How often it gave the processor up by itself: it slept, or waited for a device.
    """

    cpu_ns: int
    queued_ns: int
    collecting_ns: int
    waits: int


class Meter(Protocol):
    """Reads what the calling thread has used."""

    def read(self) -> ThreadUse:
        """Return the totals of now; takes some microseconds."""
        ...
