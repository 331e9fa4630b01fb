"""Blobs: large immutable values in a directory, each named by the SHA-256 of its content.

A blob is put before the commit that names it, so every name in the store has its blob. A put is
atomic (a temporary file, synced, renamed, its directory synced) and idempotent. A blob is
verified whenever it is read; a damaged one is never served.

All methods block on the disk: call them off the event loop when a blob may be large.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from kelpie.core.digests import Digest, digest_bytes, is_digest
from kelpie.core.errors import (
    CorruptionError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
)
from kelpie.core.limits import BLOB_BYTES_MAX, MIB
from kelpie.ports.faults import fault
from kelpie.storage.files import flip_bit, flush_to_disk, sync_directory, temporary_file

_COPY_BYTES: Final = 1 * MIB
_TEMPORARY: Final = "incoming"


def blobs_path(store: Path) -> Path:
    """Return the directory of the blobs that belong to the store file ``store``."""
    return store.with_name(store.name + ".blobs")


class BlobStore:
    """The blobs below one directory, which is created by the first put."""

    __slots__ = ("_root",)

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """The directory that holds the blobs."""
        return self._root

    def path(self, digest: Digest) -> Path:
        """Return where the blob is or would be.

        Raises:
            InvalidFieldError: ``digest`` does not have the form of one.
        """
        if not is_digest(digest):
            raise InvalidFieldError("digest", f"{digest[:80]!r} must read sha256:<64 hex digits>")
        name = digest.removeprefix("sha256:")
        return self._root / name[:2] / name

    def exists(self, digest: Digest) -> bool:
        """Return whether the blob was put; says nothing about its health."""
        return self.path(digest).is_file()

    def put_bytes(self, data: bytes) -> Digest:
        """Keep ``data`` durably and return its name; harmless when it is there already.

        Raises:
            LimitExceededError: It is larger than a blob may be.
            DiskFullError: No space; nothing was kept.
        """
        _require_size(len(data))
        digest = digest_bytes(data)
        if not self.exists(digest):
            temporary = self._temporary()
            with temporary_file(temporary) as file:
                file.write(data)
                flush_to_disk(file)
                self._publish(temporary, digest)
        assert self.exists(digest), "a put blob is there"
        return digest

    def put_file(self, source: Path) -> Digest:
        """Keep the content of ``source`` durably and return its name; ``source`` stays.

        Raises:
            LimitExceededError: It is larger than a blob may be.
            DiskFullError: No space; nothing was kept.
        """
        with source.open("rb") as opened:
            _require_size(os.fstat(opened.fileno()).st_size)
            temporary = self._temporary()
            with temporary_file(temporary) as file:
                digest = _copy(opened, file)
                flush_to_disk(file)
                self._publish(temporary, digest)
        assert self.exists(digest), "a put blob is there"
        return digest

    def get(self, digest: Digest) -> bytes:
        """Return the blob's content, verified.

        Raises:
            NotFoundError: There is no such blob.
            CorruptionError: Its content does not have this digest any more.
        """
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError("blob", digest) from None
        if fault("storage.blob_corruption"):
            data = flip_bit(data)
        if digest_bytes(data) != digest:
            message = f"blob {digest} is damaged at {path}; restore it from a backup"
            raise CorruptionError(message, digest=digest)
        return data

    def digests(self) -> Iterator[Digest]:
        """Yield the name of every blob, in order."""
        if not self._root.is_dir():
            return
        for folder in sorted(self._root.iterdir()):
            if folder.name == _TEMPORARY:
                continue
            for file in sorted(folder.iterdir()):
                yield Digest(f"sha256:{file.name}")

    def copy_to(self, target: BlobStore) -> int:
        """Copy every blob into ``target``, verified, and return how many there are.

        Raises:
            CorruptionError: A blob is damaged; it was not copied.
            DiskFullError: No space.
        """
        count = 0
        for digest in self.digests():
            copied = target.put_bytes(self.get(digest))
            assert copied == digest, "a blob keeps its name"
            count += 1
        return count

    def _temporary(self) -> Path:
        """Return a name that no other put, in this process or another, uses meanwhile."""
        folder = self._root / _TEMPORARY
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder / f"{os.getpid()}-{threading.get_ident()}"

    def _publish(self, temporary: Path, digest: Digest) -> None:
        """Give the finished file its name; the last step of a put."""
        path = self.path(digest)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        fault("crash.before_directory_sync")
        temporary.replace(path)
        sync_directory(path.parent)
        sync_directory(self._root)


def _require_size(size: int) -> None:
    if size > BLOB_BYTES_MAX:
        raise LimitExceededError("blob", actual=size, limit=BLOB_BYTES_MAX, unit="bytes")


def _copy(source: BinaryIO, target: BinaryIO) -> Digest:
    """Copy until the end, within the limit even if the file grows, and return the digest."""
    hasher = hashlib.sha256()
    size = 0
    while piece := source.read(_COPY_BYTES):
        size += len(piece)
        _require_size(size)
        hasher.update(piece)
        target.write(piece)
    return Digest(f"sha256:{hasher.hexdigest()}")
