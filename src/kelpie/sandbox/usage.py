"""What a jail's processes use, read from ``/proc`` where no control group counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.sandbox.cgroups import PROCESSES_OF_JAIL
from kelpie.sandbox.protocol import Bounds

_KIB: Final = 1024
_MEMORY_FIELDS: Final = ("RssAnon:", "RssShmem:", "VmSwap:")


class ResourceUsage(NamedTuple):
    """Memory that only this jail uses, in bytes, and its threads."""

    memory_bytes: int
    threads: int


def find_excess(process_id: int, bounds: Bounds, *, memory: bool, processes: bool) -> str:
    """Return the first of the asked-for bounds that the jail exceeds, empty for none.

    ``process_id`` is bubblewrap outside the jail; everything inside descends from it.
    """
    usage = measure(process_id)
    if processes and usage.threads > bounds.processes + PROCESSES_OF_JAIL:
        return "processes"
    if memory and usage.memory_bytes > bounds.memory_bytes:
        # Forked processes share pages; count shared ones once before anybody is blamed.
        exact = sum(_proportional_bytes(member) for member in _descendants(process_id))
        if exact > bounds.memory_bytes:
            return "memory"
    return ""


def measure(process_id: int) -> ResourceUsage:
    """Return what a process and all its descendants use now; shared pages count repeatedly."""
    memory = threads = 0
    for member in _descendants(process_id):
        for line in _read(f"/proc/{member}/status").splitlines():
            if line.startswith(_MEMORY_FIELDS):
                memory += int(line.split()[1]) * _KIB
            elif line.startswith("Threads:"):
                threads += int(line.split()[1])
    return ResourceUsage(memory, threads)


def _descendants(process_id: int) -> Iterator[int]:
    pending = [process_id]
    while pending:
        member = pending.pop()
        yield member
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                pending += [int(child) for child in _read(f"{task}/children").split()]


def _proportional_bytes(process_id: int) -> int:
    lines = _read(f"/proc/{process_id}/smaps_rollup").splitlines()
    sizes = (int(line.split()[1]) * _KIB for line in lines if line.startswith(("Pss:", "SwapPss:")))
    return sum(sizes) if lines else measure_one(process_id)


def measure_one(process_id: int) -> int:
    """Return one process's resident memory in bytes, shared pages counted in full."""
    lines = _read(f"/proc/{process_id}/status").splitlines()
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith(_MEMORY_FIELDS))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return ""  # it ended meanwhile
