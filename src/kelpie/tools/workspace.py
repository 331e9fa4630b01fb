"""What the executors need of a workspace: files behind a small protocol, and which roots count.

Contents travel as bytes and digests; a path is relative to its root, ``/``-separated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from kelpie.core.errors import DeniedError, InvalidFieldError, LimitExceededError
from kelpie.core.limits import WORKSPACE_ENTRIES_MAX
from kelpie.effects.model import FileDiff
from kelpie.sandbox.protocol import FileChange

Allowed = Callable[[str], bool]
"""Says whether an absolute directory is a workspace that effects may touch."""

Standing = Literal["applied", "pending", "moved"]
"""Where a change set's paths stand: all at their ``after``; some still at their ``before`` and the
rest at ``after``; or at least one at neither."""


class Applied(NamedTuple):
    """What an application of a change set did.

    ``paths`` are at their ``after`` now. ``moved`` are paths found at neither ``before`` nor
    ``after``: nothing was written to them. ``before`` maps each path whose content was replaced or
    removed to the digest of the former content, which is kept as a blob.
    """

    paths: tuple[str, ...]
    moved: tuple[str, ...]
    before: dict[str, str]


class WorkspaceFiles(Protocol):
    """Reads and changes files beneath a root; never follows a link out of it."""

    async def resolve_write(self, root: Path, path: str, content: bytes) -> FileChange:
        """Return the change that gives ``path`` this content, keeping the content as a blob.

        Raises:
            InputError: The path leaves the root, or is no place for a file.
        """
        ...

    async def diff(self, root: Path, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        """Return the differences that ``changes`` would make, bounded as a card is."""
        ...

    async def apply(self, root: Path, changes: Sequence[FileChange]) -> Applied:
        """Bring every path to its ``after``; a path that is there already counts as applied.

        All paths are looked at first: if one has moved, nothing is written. Each is looked at
        again at its own write.
        """
        ...

    async def reconcile(self, root: Path, changes: Sequence[FileChange]) -> Standing:
        """Return where the paths stand; changes nothing."""
        ...


def require_root(args: dict[str, Any], allowed: Allowed) -> Path:
    """Return the root that an effect's arguments name.

    Raises:
        DeniedError: It is not a workspace.
    """
    root = args.get("root")
    if not isinstance(root, str) or not root.startswith("/") or not allowed(root):
        raise DeniedError(f"{root!r} is not a workspace of this node")
    return Path(root)


def read_changes(values: Any) -> tuple[FileChange, ...]:
    """Return a change set from its stored form.

    Raises:
        InvalidFieldError: It is malformed, empty, or names a path twice.
        LimitExceededError: It has too many paths.
    """
    try:
        changes = msgspec.convert(values, tuple[FileChange, ...])
    except msgspec.ValidationError as error:
        raise InvalidFieldError("changes", str(error)) from error
    if not changes:
        raise InvalidFieldError("changes", "must hold at least one change")
    if len(changes) > WORKSPACE_ENTRIES_MAX:
        limit = WORKSPACE_ENTRIES_MAX
        raise LimitExceededError("changes", actual=len(changes), limit=limit, unit="paths")
    if len({change.path for change in changes}) != len(changes):
        raise InvalidFieldError("changes", "a path appears twice")
    return changes


def dump_changes(changes: Sequence[FileChange]) -> list[dict[str, Any]]:
    """Return a change set in its stored form."""
    dumped: list[dict[str, Any]] = msgspec.to_builtins(list(changes))
    return dumped
