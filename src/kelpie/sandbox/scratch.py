"""Scratch directories: one per command, measured while it runs, removed without trace.

Their content is chosen by commands: any depth, any mode, any name. Nothing here recurses or
follows a link.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.core.limits import DISK_FREE_BYTES_MIN, PATH_BYTES_MAX, WORKSPACE_ENTRIES_MAX

PREFIX: Final = "jail-"
_BLOCK_BYTES: Final = 512  # the unit of st_blocks
_ENTRIES_MAX: Final = 4 * WORKSPACE_ENTRIES_MAX  # inodes are a resource too
_PARTS: Final = ("upper", "work", "tmp")
_TRASH: Final = "trash"


class Scratch(NamedTuple):
    """The directories of one command; ``upper`` becomes its change set."""

    path: Path
    upper: Path


def make_scratch(root: Path, name: str, workspace: Path, *, owner: int) -> Scratch:
    """Make the directories of one command beneath ``root``, owned by host id ``owner`` if root.

    Raises:
        OSError: The file system refused.
    """
    path = root / f"{PREFIX}{name}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    mode = stat.S_IMODE(workspace.stat().st_mode) & 0o777
    for part in _PARTS:
        directory = path / part
        directory.mkdir(mode=0o700)
        # The merged root takes its mode from the layer: it must look like the workspace.
        directory.chmod(mode if part == "upper" else 0o700)
        if owner:
            os.chown(directory, owner, owner)
    if owner:
        os.chown(path, owner, owner)
    return Scratch(path, path / "upper")


def has_excess(scratch: Path, bytes_max: int) -> bool:
    """Return whether a scratch holds too many bytes, entries or levels, or the disk is full.

    A file that was deleted while open is not seen here; the limit on one file's size and the free
    space of the disk bound those.
    """
    space = os.statvfs(scratch)
    if space.f_bavail * space.f_frsize < DISK_FREE_BYTES_MIN:
        return True
    used = entries = 0
    pending = [str(scratch)]
    while pending:
        directory = pending.pop()
        if len(directory) > PATH_BYTES_MAX - 512:
            return True
        # The command is at work: what vanishes or closes meanwhile is not counted.
        with suppress(OSError), os.scandir(directory) as found:
            for entry in found:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    used += status.st_blocks * _BLOCK_BYTES
                    entries += 1
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                if used > bytes_max or entries > _ENTRIES_MAX:
                    return True
    return False


def remove_scratch(path: Path) -> None:
    """Remove a scratch directory and everything in it, however deep; harmless when absent.

    Raises:
        OSError: Something could not be removed.
    """
    if not path.exists():
        return
    # Each directory is first moved up to one flat level, so that depth costs nothing.
    trash = path / _TRASH
    trash.mkdir(mode=0o700, exist_ok=True)
    count = 0
    pending = [path / part for part in _PARTS] + list(trash.iterdir())
    for directory in pending:
        if directory.parent != trash and directory.is_dir():
            directory.rename(trash / f"{os.getpid()}-{count}")
            count += 1
    while pending := list(trash.iterdir()):
        for directory in pending:
            count = _flatten(directory, trash, count)
            directory.rmdir()
    trash.rmdir()
    path.rmdir()


def _flatten(directory: Path, trash: Path, count: int) -> int:
    """Delete the files of a directory and move its directories to the trash; return the count."""
    directory.chmod(0o700)
    with os.scandir(directory) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            inner = Path(entry.path)
            inner.chmod(0o700)  # moving a directory writes its `..`
            inner.rename(trash / f"{os.getpid()}-{count}")
            count += 1
        else:
            Path(entry.path).unlink()
    return count


def list_scratches(root: Path) -> list[Path]:
    """Return the scratch directories that exist beneath ``root``."""
    return sorted(root.glob(f"{PREFIX}*")) if root.is_dir() else []
