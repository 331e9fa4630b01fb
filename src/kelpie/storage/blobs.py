"""Blobs: large immutable values in a directory, each named by the SHA-256 of its content.

A blob is put before the commit that names it, so every name in the store has its blob. A put is
atomic (a temporary file, synced, renamed, its directory synced) and idempotent. A blob is
verified whenever it is read; a damaged one is never served.

A sweep removes what no row names. It leaves alone whatever was put, or looked for, within
``BLOB_UNNAMED_KEEP_MS``: the commit that names it may be on its way. One process puts and sweeps,
through one object; backups, in whatever process, keep sweeps away.

All methods block on the disk: call them off the event loop when a blob may be large.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from kelpie.core.digests import Digest, digest_bytes, is_digest
from kelpie.core.errors import (
    ConflictError,
    CorruptionError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
)
from kelpie.core.limits import BLOB_BYTES_MAX, BLOB_UNNAMED_KEEP_MS, MIB
from kelpie.core.quoting import quote_text
from kelpie.ports.faults import fault
from kelpie.storage.files import (
    flip_bit,
    sync_directory,
    sync_file,
    temporary_file,
    typed_failures,
)

_COPY_BYTES: Final = 1 * MIB
_TEMPORARY: Final = "incoming"


def blobs_path(store: Path) -> Path:
    """Return the directory of the blobs that belong to the store file ``store``."""
    return store.with_name(store.name + ".blobs")


class Swept(NamedTuple):
    """What a sweep removed."""

    blobs: int
    size_bytes: int


class BlobStore:
    """The blobs below one directory, which is created by the first put."""

    __slots__ = ("_lock", "_root")

    def __init__(self, root: Path) -> None:
        self._root = root
        # Between looking for a blob and counting on it, no sweep may come.
        self._lock = threading.Lock()

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
            raise InvalidFieldError(
                "digest", f"{quote_text(digest)} must read sha256:<64 hex digits>"
            )
        name = digest.removeprefix("sha256:")
        return self._root / name[:2] / name

    def exists(self, digest: Digest) -> bool:
        """Return whether the blob was put, and keep it from the next sweep, as a put does.

        Says nothing about its health.
        """
        path = self.path(digest)
        with self._lock:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def put_bytes(self, data: bytes) -> Digest:
        """Keep ``data`` durably and return its name; harmless when it is there already.

        Raises:
            LimitExceededError: It is larger than a blob may be.
            DiskFullError: No space; nothing was kept.
        """
        (digest,) = self.put_many([data])
        assert digest == digest_bytes(data), "a blob is named by its content"
        return digest

    def put_many(self, contents: Sequence[bytes | Path]) -> Sequence[Digest]:
        """Keep bytes and the contents of files durably, and return their names, in order.

        Syncs each file once and each directory once, so that many cost little more than their
        files. After a failure some of them may be there.

        Raises:
            LimitExceededError: One is larger than a blob may be; nothing was kept.
            DiskFullError: No space.
        """
        digests: list[Digest] = []
        written: dict[Digest, Path] = {}
        with ExitStack() as temporaries:
            for content in contents:
                path = self._temporary(len(digests))
                digests.append(self._write(content, path, written, temporaries))
            for path in written.values():
                if fault("storage.blob_disk_full"):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                sync_file(path)
            self._publish(written)
        assert len(digests) == len(contents), "every content has a name"
        return digests

    def _write(
        self, content: bytes | Path, path: Path, written: dict[Digest, Path], stack: ExitStack
    ) -> Digest:
        """Write one content to ``path``, unless it is there already; not synced yet."""
        if isinstance(content, bytes):
            _require_size(len(content))
            digest = digest_bytes(content)
            if digest not in written and not self.exists(digest):
                with stack.enter_context(temporary_file(path)) as file:
                    file.write(content)
                written[digest] = path
            return digest
        with content.open("rb") as source:
            _require_size(os.fstat(source.fileno()).st_size)
            with stack.enter_context(temporary_file(path)) as file:
                digest = _copy(source, file)
        if digest in written or self.exists(digest):
            path.unlink()
        else:
            written[digest] = path
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
        """Yield the name of every blob, in order; a stranger's file is none."""
        if not self._root.is_dir():
            return
        for folder in sorted(self._root.iterdir()):
            if folder.name == _TEMPORARY or not folder.is_dir():
                continue
            for file in sorted(folder.iterdir()):
                digest = Digest(f"sha256:{file.name}")
                if is_digest(digest) and self.path(digest) == file:
                    yield digest

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

    @contextmanager
    def kept(self) -> Generator[None, None, None]:
        """Keep sweeps away meanwhile; waits for one that runs."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def sweep(self, find_named: Callable[[AbstractSet[Digest]], AbstractSet[Digest]]) -> Swept:
        """Remove the blobs that nothing names, and what interrupted puts left.

        Args:
            find_named: Returns those of the given blobs that the store names. It sees every commit
                up to its call.

        Raises:
            ConflictError: A backup is being made, which may need them.
        """
        if not self._root.is_dir():
            return Swept(0, 0)
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            before_ns = self._now_ns() - BLOB_UNNAMED_KEEP_MS * 1_000_000
            old = {each for each in self.digests() if _touched_ns(self.path(each)) < before_ns}
            unnamed = old - find_named(old) if old else old
            sizes = [self._remove(self.path(each), before_ns) for each in sorted(unnamed)]
            for left in (self._root / _TEMPORARY).iterdir():
                self._remove(left, before_ns)
        gone = [size for size in sizes if size is not None]
        assert len(gone) <= len(unnamed), "only what nothing names goes"
        return Swept(len(gone), sum(gone))

    def _remove(self, path: Path, before_ns: int) -> int | None:
        """Remove a file and return its size; None if it was put or looked for since."""
        with self._lock:
            try:
                found = path.stat()
            except FileNotFoundError:  # an interrupted put was not interrupted after all
                return None
            if found.st_mtime_ns >= before_ns:
                return None
            path.unlink()
        assert found.st_size >= 0, "a file has a size"
        return found.st_size

    def _now_ns(self) -> int:
        """Return the time as the file system counts it, which is how it dates the blobs."""
        path = self._temporary(0)
        with temporary_file(path) as file:
            return os.fstat(file.fileno()).st_mtime_ns

    @contextmanager
    def _locked(self, operation: int) -> Generator[None, None, None]:
        if not self._root.is_dir():
            yield
            return
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, operation)
            except BlockingIOError:
                message = f"a backup reads {self._root}; try again when it has ended"
                raise ConflictError(message, path=str(self._root)) from None
            yield
        finally:
            os.close(descriptor)

    def _temporary(self, number: int) -> Path:
        """Return a name that no other put, in this process or another, uses meanwhile."""
        folder = self._root / _TEMPORARY
        if not folder.is_dir():
            with typed_failures(self._root):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                sync_directory(self._root.parent)
        return folder / f"{os.getpid()}-{threading.get_ident()}-{number}"

    def _publish(self, written: dict[Digest, Path]) -> None:
        """Give finished, synced files their names; the last step of a put."""
        folders: set[Path] = set()
        for digest, temporary in written.items():
            path = self.path(digest)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            fault("crash.before_directory_sync")
            temporary.replace(path)
            folders.add(path.parent)
        for folder in sorted(folders):
            sync_directory(folder)
        if folders:
            sync_directory(self._root)


def _touched_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


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
