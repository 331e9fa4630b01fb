"""What proc(5) says about another process of this machine; nothing here touches one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

STOPPED: Final = frozenset("Tt")
"""States of a process that a signal or a debugger has stopped."""

_PROC: Final = Path("/proc")
_LISTENING: Final = "0A"


def name_process(pid: int) -> str:
    """Return what a process is called in a message; 0 is one that has not said who it is."""
    return f"process {pid}" if pid else "another process"


def process_state(pid: int) -> str:
    """Return the state letter of a process; empty if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name stands in brackets, and may hold brackets and spaces itself.
    return text.rpartition(")")[2].split()[0]


def listens(pid: int, port: int) -> bool:
    """Return whether a process listens on a TCP port; False also where this user cannot see it."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
        return any(str(descriptor.readlink()) in sockets for descriptor in descriptors)
    except OSError:
        return False


def _listening(port: int) -> list[str]:
    """Return the inodes of the sockets that listen on a port, whatever their address."""
    found: list[str] = []
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        found += [
            fields[9]
            for fields in map(str.split, lines)
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port
        ]
    return found
