"""What the demonstration asks of the machine itself: processes by their ancestry, and removal."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def remove_tree(root: Path) -> None:
    """Remove a directory with all that is in it, as far as that is possible."""
    for path, names, _ in os.walk(root):
        for name in names:
            directory = Path(path, name)
            # A killed jail leaves directories without any permission.
            with contextlib.suppress(OSError):
                if not directory.is_symlink():
                    directory.chmod(0o700)
    shutil.rmtree(root, ignore_errors=True)


def find_running(argv: list[str], *, below: int) -> int | None:
    """Return the pid of a descendant of ``below`` that runs exactly ``argv``, if there is one."""
    wanted = "\0".join(argv).encode() + b"\0"
    parents = _read_parents()
    for pid in parents:
        try:
            matches = Path(f"/proc/{pid}/cmdline").read_bytes() == wanted
        except OSError:
            continue
        if matches and _descends(pid, below, parents):
            return pid
    return None


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that is only waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _read_parents() -> Mapping[int, int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def _descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == ancestor:
            return True
    return False
