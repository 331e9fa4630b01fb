"""Blobs in memory and shorthand for changes, for tests over real directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import NotFoundError
from kelpie.sandbox.protocol import FileChange
from kelpie.sandbox.workspace import DIRECTORY_DIGEST, link_content


class MemoryBlobs:
    """Implements `kelpie.sandbox.blobs.Blobs`."""

    def __init__(self) -> None:
        self.content: dict[Digest, bytes] = {}

    def put_bytes(self, data: bytes) -> Digest:
        digest = digest_bytes(data)
        self.content[digest] = data
        return digest

    def put_many(self, contents: Sequence[bytes | Path]) -> Sequence[Digest]:
        return [
            self.put_bytes(each if isinstance(each, bytes) else each.read_bytes())
            for each in contents
        ]

    def get(self, digest: Digest) -> bytes:
        if digest not in self.content:
            raise NotFoundError("blob", digest)
        return self.content[digest]

    def exists(self, digest: Digest) -> bool:
        return digest in self.content


def write(
    blobs: MemoryBlobs, path: str, new: bytes, *, old: bytes | None = None, mode: int = 0o644
) -> FileChange:
    before = "" if old is None else digest_bytes(old)
    after = blobs.put_bytes(new)
    return FileChange(path=path, kind="file", before=before, after=after, mode=mode)


def delete(path: str, old: str, kind: Literal["file", "directory", "link"] = "file") -> FileChange:
    return FileChange(path=path, kind=kind, before=old, after="", mode=0)


def directory(path: str, *, before: str = "", mode: int = 0o755) -> FileChange:
    return FileChange(path=path, kind="directory", before=before, after=DIRECTORY_DIGEST, mode=mode)


def link(blobs: MemoryBlobs, path: str, target: str, *, before: str = "") -> FileChange:
    after = blobs.put_bytes(link_content(target))
    return FileChange(path=path, kind="link", before=before, after=after, mode=0o777)
