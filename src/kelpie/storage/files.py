"""The few promises about files that every durable write needs.

Never interprets what a file holds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kelpie.core.digests import Digest
from kelpie.core.errors import DiskFullError, StoreError
from kelpie.ports.faults import fault


def is_disk_full(error: OSError) -> bool:
    """Return whether the disk, or the user's share of it, is full."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def sync_file(path: Path) -> None:
    """Return once the content of ``path`` is on the disk."""
    _sync_path(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Return once the names in ``path`` are on the disk."""
    _sync_path(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync_path(path: Path, flags: int) -> None:
    if fault("storage.sync_fail"):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    assert path.exists(), "what was synced is there"


@contextmanager
def temporary_file(path: Path) -> Generator[BinaryIO, None, None]:
    """Open ``path`` for writing; remove it at the end unless it was renamed away.

    Raises:
        DiskFullError: No space while writing.
        StoreError: The disk failed while writing.
    """
    try:
        with typed_failures(path.parent), path.open("wb") as file:
            yield file
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def typed_failures(folder: Path) -> Generator[None, None, None]:
    """Turn what the disk of ``folder`` fails with into a typed error.

    Raises:
        DiskFullError: No space.
        StoreError: Anything else.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            message = f"no space left in {folder}; free some and try again"
            raise DiskFullError(message) from error
        problem = f"{folder} cannot be written ({error.strerror}); check the disk"
        raise StoreError(problem, path=str(folder)) from error


@contextmanager
def temporary_directory(path: Path) -> Generator[Path, None, None]:
    """Create the directory ``path``; remove it at the end unless it was renamed away.

    What an earlier, interrupted attempt left under this name is removed first.
    """
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def digest_file(path: Path) -> Digest:
    """Return the digest of a file's content, whatever its size."""
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def flip_bit(data: bytes) -> bytes:
    """Return ``data`` as a failing disk gives it back: for fault points, and only for them."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"\0"
