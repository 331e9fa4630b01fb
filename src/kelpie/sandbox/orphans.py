"""Jails that outlived their session: found by the mark on bubblewrap's command line, and killed.

The mark names one scratch root, so that two Kelpies on one host never touch each other's jails.
A process is signalled through a pidfd after its mark was read again: a recycled pid is spared.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from kelpie.core.digests import digest_bytes

MARK_VARIABLE: Final = "KELPIE_JAIL"
_MARK_CHARS: Final = 16


def make_mark(scratch_root: Path) -> str:
    """Return the mark of every jail whose scratch lies beneath ``scratch_root``."""
    text = digest_bytes(os.fsencode(scratch_root.resolve()))
    return text.removeprefix("sha256:")[:_MARK_CHARS]


def kill_marked(mark: str) -> int:
    """Kill every process whose command line carries ``mark`` and return how many there were."""
    killed = 0
    for process_id in _process_ids():
        if process_id != os.getpid() and _is_marked(process_id, mark):
            killed += _kill(process_id, mark)
    return killed


def open_marked(process_id: int, mark: str) -> int | None:
    """Return a pidfd of ``process_id`` if it carries ``mark``; None if it is gone."""
    try:
        descriptor = os.pidfd_open(process_id)
    except OSError:
        return None
    if _is_marked(process_id, mark):
        return descriptor
    os.close(descriptor)
    return None


def kill_members(process_ids: tuple[int, ...], procs: Path) -> None:
    """Kill processes that are listed in a control group of ours."""
    for process_id in process_ids:
        with suppress(OSError):
            descriptor = os.pidfd_open(process_id)
            try:
                if str(process_id) in procs.read_text().split():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _process_ids() -> Iterator[int]:
    names = (entry.name for entry in Path("/proc").iterdir())
    return (int(name) for name in names if name.isdecimal())


def _is_marked(process_id: int, mark: str) -> bool:
    try:
        words = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(
        word == MARK_VARIABLE.encode() and value.startswith(mark.encode())
        for word, value in itertools.pairwise(words)
    )


def _kill(process_id: int, mark: str) -> int:
    descriptor = open_marked(process_id, mark)
    if descriptor is None:
        return 0
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return 0
    finally:
        os.close(descriptor)
    return 1
