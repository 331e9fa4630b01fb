"""Reading a workspace from the host: states, contents and listings, bounded and link-safe.

Never writes and never follows a link. Methods block on the disk: call them off the event loop.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import InvalidFieldError, LimitExceededError, NotFoundError
from kelpie.core.limits import MIB, WORKSPACE_ENTRIES_MAX, WORKSPACE_FILE_BYTES_MAX
from kelpie.core.quoting import quote_text
from kelpie.sandbox.paths import BlockedPathError, Root, parse_path
from kelpie.sandbox.protocol import FileState

ABSENT: Final = FileState("absent", "", 0, 0)
DIRECTORY_DIGEST: Final = digest_bytes(b"")
"""A directory has no content of its own; its entries are paths of their own."""

_LINK_PREFIX: Final = b"link\0"
_READ_BYTES: Final = MIB
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PERMISSIONS: Final = 0o777  # set-id and sticky bits never travel in a change

Kind = Literal["absent", "file", "directory", "link", "other"]


class Entry(NamedTuple):
    """One entry of a listing; ``path`` is relative to the workspace."""

    path: str
    kind: Kind
    size_bytes: int


class Listing(NamedTuple):
    """Entries in order of their paths; ``cut`` when there were more than asked for."""

    entries: tuple[Entry, ...]
    cut: bool


class Workspace:
    """A directory of the host that tools may see; everything is relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def state(self, path: str) -> FileState:
        """Return the kind, digest, mode and size of ``path`` now.

        Raises:
            InvalidFieldError: The path leaves the workspace or leads through a link.
            NotFoundError: The workspace itself does not exist.
        """
        parts = parse_path(path)
        with Root(self.root) as root:
            return state_beneath(root, parts)

    def read(self, path: str, *, bytes_max: int = WORKSPACE_FILE_BYTES_MAX) -> bytes:
        """Return the content of a regular file.

        Raises:
            InvalidFieldError: It is no regular file, or the path leads outside.
            LimitExceededError: It is larger than ``bytes_max``.
            NotFoundError: It does not exist.
        """
        parts = parse_path(path)
        with Root(self.root) as root:
            try:
                with open_file(root, parts) as descriptor:
                    return _read_bounded(descriptor, path, bytes_max)
            except FileNotFoundError:
                raise NotFoundError("file", path) from None
            except OSError as error:
                raise InvalidFieldError("path", f"{path!a}: {error.strerror}") from error

    def list(
        self,
        path: str = ".",
        *,
        recursive: bool = False,
        entries_max: int = WORKSPACE_ENTRIES_MAX,
    ) -> Listing:
        """Return the entries of a directory, links named but never entered.

        Raises:
            InvalidFieldError: It is no directory, or the path leads outside.
            NotFoundError: It does not exist.
        """
        pending = [parse_path(path)]
        entries: list[Entry] = []
        with Root(self.root) as root:
            while pending and len(entries) <= entries_max:
                parts = pending.pop()
                try:
                    found = _list_one(root, parts, entries_max + 1 - len(entries))
                except FileNotFoundError:
                    raise NotFoundError("directory", path) from None
                entries += found
                if recursive:
                    inner = (parse_path(e.path) for e in found if e.kind == "directory")
                    pending += sorted(inner, reverse=True)
        cut = len(entries) > entries_max
        return Listing(tuple(sorted(entries[:entries_max])), cut)


def state_beneath(root: Root, parts: tuple[str, ...]) -> FileState:
    """Return the state of ``parts`` beneath an open root.

    Raises:
        BlockedPathError: The way leads through a link or a file.
        InvalidFieldError: It cannot be read.
    """
    try:
        with root.directory(parts[:-1]) as parent:
            name = parts[-1] if parts else "."
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            return _describe(parent, name, found)
    except FileNotFoundError:
        return ABSENT
    except PermissionError as error:
        shown = quote_text("/".join(parts))
        raise InvalidFieldError("path", f"{shown}: {error.strerror}") from error


def link_content(target: str) -> bytes:
    """Return what a link's digest covers and its blob holds."""
    return _LINK_PREFIX + os.fsencode(target)


def link_target(content: bytes) -> str:
    """Return the target that `link_content` wrapped."""
    assert content.startswith(_LINK_PREFIX), "a link's blob starts with its mark"
    return os.fsdecode(content[len(_LINK_PREFIX) :])


def kind_of(mode: int) -> Kind:
    """Return the kind of a path from its ``st_mode``."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


@contextmanager
def open_file(root: Root, parts: tuple[str, ...]) -> Generator[int]:
    """Yield a descriptor of a regular file, opened without following or blocking.

    Raises:
        FileNotFoundError: It does not exist.
        InvalidFieldError: It is no regular file.
    """
    if not parts:
        raise InvalidFieldError("path", "the workspace itself is no file")
    with root.directory(parts[:-1]) as parent:
        mode = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode):
            shown = quote_text("/".join(parts))
            raise InvalidFieldError("path", f"{shown} is no regular file ({kind_of(mode)})")
        descriptor = os.open(parts[-1], _FILE_FLAGS, dir_fd=parent)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidFieldError("path", "it was replaced while it was opened; try again")
        yield descriptor
    finally:
        os.close(descriptor)


def _describe(parent: int, name: str, found: os.stat_result) -> FileState:
    mode = stat.S_IMODE(found.st_mode) & _PERMISSIONS
    match kind_of(found.st_mode):
        case "file":
            return FileState("file", _digest_file(parent, name), mode, found.st_size)
        case "directory":
            return FileState("directory", DIRECTORY_DIGEST, mode, 0)
        case "link":
            target = os.readlink(name, dir_fd=parent)
            return FileState("link", digest_bytes(link_content(target)), mode, found.st_size)
        case _:
            identity = f"other {found.st_mode} {found.st_rdev}".encode()
            return FileState("other", digest_bytes(identity), mode, 0)


def _digest_file(parent: int, name: str) -> Digest:
    hasher = hashlib.sha256()
    descriptor = os.open(name, _FILE_FLAGS, dir_fd=parent)
    try:
        while piece := os.read(descriptor, _READ_BYTES):
            hasher.update(piece)
    finally:
        os.close(descriptor)
    return Digest(f"sha256:{hasher.hexdigest()}")


def _read_bounded(descriptor: int, path: str, bytes_max: int) -> bytes:
    content = bytearray()
    while piece := os.read(descriptor, _READ_BYTES):
        content += piece
        if len(content) > bytes_max:
            size = max(os.fstat(descriptor).st_size, len(content))
            field = quote_text(path)
            raise LimitExceededError(field, actual=size, limit=bytes_max, unit="bytes")
    return bytes(content)


def _list_one(root: Root, parts: tuple[str, ...], count_max: int) -> list[Entry]:
    entries: list[Entry] = []
    with root.directory(parts) as directory, os.scandir(directory) as found:
        for item in found:
            if len(entries) >= count_max:
                break
            status = item.stat(follow_symlinks=False)
            path = "/".join((*parts, item.name)).encode(errors="backslashreplace").decode()
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            entries.append(Entry(path, kind_of(status.st_mode), size))
    return entries


__all__ = [
    "ABSENT",
    "DIRECTORY_DIGEST",
    "BlockedPathError",
    "Entry",
    "Kind",
    "Listing",
    "Workspace",
    "kind_of",
    "link_content",
    "link_target",
    "open_file",
    "state_beneath",
]
