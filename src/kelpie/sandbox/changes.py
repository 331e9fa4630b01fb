"""Change sets over a workspace: checked, applied, and read back after a crash.

One change names one path with the digest it had (``before``) and the digest it gets (``after``).
Invariants: nothing is touched unless every path is at its ``before`` or already at its ``after``;
each file appears whole or not at all; applying twice is the same as applying once. Between the
last look at a file and its rename lies a window of microseconds that only a lock could close.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import (
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    SandboxError,
    TargetMovedError,
)
from kelpie.core.limits import WORKSPACE_ENTRIES_MAX
from kelpie.core.quoting import quote_text
from kelpie.ports.faults import fault
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.paths import BlockedPathError, Root, adopt_owner, parse_path
from kelpie.sandbox.protocol import FileChange, FileState
from kelpie.sandbox.workspace import (
    ABSENT,
    DIRECTORY_DIGEST,
    link_target,
    state_beneath,
)

Progress = Literal["untouched", "applied", "partial", "moved"]

_PARENT_MODE: Final = 0o755  # of directories that a change needs and no change describes
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWNER_ALL: Final = 0o700
_NEW_FILE_MODE: Final = 0o600  # until its content is complete


class Look(NamedTuple):
    """A change and the state its path was found in."""

    change: FileChange
    state: FileState

    @property
    def is_applied(self) -> bool:
        """Whether the path is as the change would leave it."""
        change, state = self
        if not change.after:
            return state.kind == "absent"
        mode_fits = change.kind == "link" or state.mode == change.mode
        return state.kind == change.kind and state.digest == change.after and mode_fits

    @property
    def is_untouched(self) -> bool:
        """Whether the path is as the change expects to find it."""
        return self.state.digest == self.change.before


def reconcile_changes(root: Path, changes: Sequence[FileChange]) -> Progress:
    """Return how far ``changes`` have come; ``moved`` when a path is in neither state.

    A set that changes nothing is ``applied``. Blocks on the disk.

    Raises:
        InvalidFieldError: A path is invalid.
        NotFoundError: The root does not exist.
    """
    with Root(root) as opened:
        looks = _look(opened, changes)
    if all(look.is_applied for look in looks):
        return "applied"
    if all(look.is_untouched for look in looks):
        return "untouched"
    if all(look.is_applied or look.is_untouched for look in looks):
        return "partial"
    return "moved"


def apply_changes(root: Path, changes: Sequence[FileChange], blobs: Blobs) -> int:
    """Bring every path to its ``after`` and return how many were not there yet.

    Durable when it returns. After a crash in between, applying the same set again completes it.
    Missing parents are made with mode 0755. Blocks on the disk.

    Raises:
        TargetMovedError: A path is at neither ``before`` nor ``after``. Its ``applied`` says how
            many paths this call changed before it noticed: 0 unless somebody wrote meanwhile.
        NotFoundError: A blob or the root is missing; nothing was touched.
        InvalidFieldError: A path or a change is invalid; nothing was touched.
        SandboxError: The file system refused (full, read-only, not ours); see ``applied``.
    """
    with Root(root) as opened:
        looks = _look(opened, changes)
        for look in looks:
            if not look.is_applied and not look.is_untouched:
                raise TargetMovedError(look.change.path, applied=0)
        _check_emptied(opened, looks)
        _check_blobs(looks, blobs)
        pending = [look.change for look in looks if not look.is_applied]
        for count, change in enumerate(_order(pending)):
            try:
                _apply_one(opened, change, blobs, applied=count)
            except OSError as error:
                message = f"cannot write {quote_text(change.path)}: {error.strerror}"
                raise SandboxError(message, path=change.path, applied=count) from error
        assert all(look.is_applied for look in _look(opened, changes)), "every change is there"
        return len(pending)


def _look(root: Root, changes: Sequence[FileChange]) -> list[Look]:
    if len(changes) > WORKSPACE_ENTRIES_MAX:
        actual = len(changes)
        limit = WORKSPACE_ENTRIES_MAX
        raise LimitExceededError("changes", actual=actual, limit=limit, unit="paths")
    by_parts: dict[tuple[str, ...], FileChange] = {}
    for change in changes:
        parts = parse_path(change.path, field="changes.path")
        if not parts or parts in by_parts:
            problem = f"{quote_text(change.path)} is the root or named twice"
            raise InvalidFieldError("changes.path", problem)
        if change.mode & ~0o777:
            problem = f"{change.mode:o} has more than permission bits"
            raise InvalidFieldError("changes.mode", problem)
        by_parts[parts] = change
    return [Look(change, _state(root, parts, by_parts)) for parts, change in by_parts.items()]


def _state(
    root: Root, parts: tuple[str, ...], by_parts: dict[tuple[str, ...], FileChange]
) -> FileState:
    try:
        return state_beneath(root, parts)
    except BlockedPathError:
        # Something that is no directory yet, and this very set makes it one.
        ancestors = (by_parts.get(parts[:length]) for length in range(1, len(parts)))
        if any(change and change.kind == "directory" and change.after for change in ancestors):
            return ABSENT
        raise


def _check_emptied(root: Root, looks: Sequence[Look]) -> None:
    """Refuse to remove a directory that holds something this set does not remove."""
    leaving = {parse_path(look.change.path) for look in looks if not look.change.after}
    for look in looks:
        stays_directory = look.change.kind == "directory" and look.change.after
        if look.state.kind != "directory" or stays_directory:
            continue
        parts = parse_path(look.change.path)
        with root.directory(parts) as descriptor:
            names = os.listdir(descriptor)  # noqa: PTH208  # pathlib has no descriptors
        for name in names:
            if (*parts, name) not in leaving:
                raise TargetMovedError("/".join((*parts, name)), applied=0)


def _check_blobs(looks: Sequence[Look], blobs: Blobs) -> None:
    for look in looks:
        change = look.change
        if look.is_applied or not change.after or change.kind == "directory":
            continue
        only_mode = change.before == change.after and look.state.kind == change.kind
        if not only_mode and not blobs.exists(Digest(change.after)):
            raise NotFoundError("blob", change.after)


def _order(changes: Sequence[FileChange]) -> list[FileChange]:
    """Removals first and from the leaves, then the rest from the root, closed directories last.

    A directory that its owner may not write is first made writable and closed at the end, so that
    an ordinary user's change set can fill it.
    """
    removals = [change for change in changes if not change.after]
    others = [change for change in changes if change.after]
    removals.sort(key=lambda change: parse_path(change.path), reverse=True)
    others.sort(key=lambda change: parse_path(change.path))
    closed = [change for change in others if _is_closed(change)]
    opened = [_open_up(change) if _is_closed(change) else change for change in others]
    narrowed = [replace(change, before=DIRECTORY_DIGEST) for change in reversed(closed)]
    return [*removals, *opened, *narrowed]


def _is_closed(change: FileChange) -> bool:
    return change.kind == "directory" and change.mode & _OWNER_ALL != _OWNER_ALL


def _open_up(change: FileChange) -> FileChange:
    return replace(change, mode=change.mode | _OWNER_ALL)


def _apply_one(root: Root, change: FileChange, blobs: Blobs, *, applied: int) -> None:
    parts = parse_path(change.path)
    with root.directory(parts[:-1], create_mode=_PARENT_MODE) as parent:
        state = state_beneath(root, parts)
        if state.digest != change.before or fault("concurrency.target_moved"):
            raise TargetMovedError(change.path, applied=applied)
        _carry_out(parent, parts[-1], state, change, blobs)
        os.fsync(parent)
        # Read the result back while the parent is still held.
        if not Look(change, state_beneath(root, parts)).is_applied:
            raise TargetMovedError(change.path, applied=applied + 1)


def _carry_out(parent: int, name: str, state: FileState, change: FileChange, blobs: Blobs) -> None:
    if not change.after:
        _remove(parent, name, state)
        return
    if state.kind == change.kind and change.before == change.after:
        _set_mode(parent, name, change.mode)
        return
    if change.kind == "directory":
        if state.kind != "absent":
            _remove(parent, name, state)
        os.mkdir(name, 0o700, dir_fd=parent)  # pathlib has no dir_fd
        _set_mode(parent, name, change.mode, owner=os.fstat(parent))
        return
    content = blobs.get(Digest(change.after))
    temporary = _temporary_name(change)
    _write_temporary(parent, temporary, name, change, content)
    try:
        if state.kind == "directory":
            _remove(parent, name, state)
        if state.kind == "absent":
            # Unlike a rename this fails if somebody made the path meanwhile.
            os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
        else:
            os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except FileExistsError:
        raise TargetMovedError(change.path, applied=0) from None
    finally:
        _unlink(parent, temporary)


def _write_temporary(
    parent: int, temporary: str, name: str, change: FileChange, content: bytes
) -> None:
    _unlink(parent, temporary)  # of an attempt that was cut short
    if fault("storage.workspace_disk_full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if fault("storage.workspace_write_fail"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if change.kind == "link":
        os.symlink(link_target(content), temporary, dir_fd=parent)
        return
    descriptor = os.open(temporary, _NEW_FILE, _NEW_FILE_MODE, dir_fd=parent)
    try:
        with open(descriptor, "wb", closefd=False) as file:  # a descriptor
            file.write(content)
        adopt_owner(descriptor, _owner_model(parent, name))
        os.fchmod(descriptor, change.mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _owner_model(parent: int, name: str) -> os.stat_result:
    """Return whose owner a new file takes: the file it replaces, or else its directory."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return os.fstat(parent)


def _set_mode(parent: int, name: str, mode: int, *, owner: os.stat_result | None = None) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        if owner is not None:
            adopt_owner(descriptor, owner)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(parent: int, name: str, state: FileState) -> None:
    if state.kind == "directory":
        os.rmdir(name, dir_fd=parent)  # pathlib has no dir_fd
    elif state.kind != "absent":
        os.unlink(name, dir_fd=parent)  # pathlib has no dir_fd


def _unlink(parent: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent)  # pathlib has no dir_fd
    except FileNotFoundError:
        return


def _temporary_name(change: FileChange) -> str:
    """Return a name that the same change always uses, so that a crash leaves one at most."""
    digest = digest_bytes(f"{change.path}\0{change.after}".encode())
    return f".kelpie-{digest.removeprefix('sha256:')[:24]}"


__all__ = ["DIRECTORY_DIGEST", "Look", "Progress", "apply_changes", "reconcile_changes"]
