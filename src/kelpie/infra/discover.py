"""What is: the state of a target's paths, read through a protocol.

Never changes a path; storing content in the blob store is not a change of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kelpie.core.digests import Digest
from kelpie.effects.model import FileDiff
from kelpie.infra.paths import list_ancestors
from kelpie.infra.plan import ABSENT
from kelpie.sandbox.protocol import FileChange, FileState


class Target(Protocol):
    """A root on a host. Paths are relative to it; no method follows a link out of it."""

    async def state(self, path: str) -> FileState:
        """Return what ``path`` is now; the mode is permission bits alone.

        Raises:
            KelpieError: The path cannot be read, or lies below a link or a file.
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
    """Return the state of each path, read one after the other in the given order.

    A path below something that was found to be no directory is absent and is not asked for, so
    that a link in the way is a fact to plan with and not an error.
    """
    states: dict[str, FileState] = {}
    for path in paths:
        above = (states.get(ancestor) for ancestor in list_ancestors(path))
        blocked = any(state is not None and state.kind != "directory" for state in above)
        states[path] = ABSENT if blocked else await target.state(path)
    return states
