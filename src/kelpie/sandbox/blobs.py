"""What the sandbox needs of a blob store; `kelpie.storage` has the real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kelpie.core.digests import Digest


class Blobs(Protocol):
    """Immutable values named by their digest. Every method blocks on the disk."""

    def put_bytes(self, data: bytes) -> Digest:
        """Keep ``data`` durably and return its name."""
        ...

    def put_many(self, contents: Sequence[bytes | Path]) -> Sequence[Digest]:
        """Keep bytes and the contents of regular files durably; return their names, in order.

        Costs little more than the writing, where one put after another waits for each.
        """
        ...

    def get(self, digest: Digest) -> bytes:
        """Return a blob's content, verified.

        Raises:
            NotFoundError: There is no such blob.
            CorruptionError: Its content is damaged.
        """
        ...

    def exists(self, digest: Digest) -> bool:
        """Return whether the blob was put; whoever asks may name it from now on."""
        ...
