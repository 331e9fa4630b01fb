"""What is: the state of a target's paths, read through a protocol.

Never changes a path; storing content in the blob store is not a change of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kelpie.core.digests import Digest
from kelpie.effects.model import FileDiff
from kelpie.sandbox.protocol import FileChange, FileState


class Target(Protocol):
    """A root on a host. Paths are relative to it; no method follows a link out of it."""

    async def state(self, path: str) -> FileState:
        """Return what ``path`` is now; the mode is permission bits alone.

        Raises:
            SandboxError: The path cannot be read.
        """
        ...

    async def put_blob(self, data: bytes) -> Digest:
        """Keep ``data`` in the blob store, so that a change can name it, and return its digest."""
        ...

    async def diff(self, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        """Return how each change would look against the present state, in the same order."""
        ...


OpenTarget = Callable[[str], Target]
"""Gives the target of an absolute root."""


async def discover(target: Target, paths: Iterable[str]) -> dict[str, FileState]:
    """Return the state of each path, read one after the other in the given order."""
    return {path: await target.state(path) for path in paths}
