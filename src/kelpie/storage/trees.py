"""Directories as lists: what lies in one, and how to make one like it.

A listing names every directory, file and symbolic link below a root by its path, parents first. A
file is named by its digest; a link is kept as it is, and nothing ever follows one. What is neither
(sockets, pipes, devices) has no place in a listing and is named apart.

Blocks on the disk. Never writes outside the directory that it makes, whatever a listing says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from kelpie.core.digests import Digest, digest_bytes, is_digest
from kelpie.core.errors import CorruptionError, InvalidFieldError, LimitExceededError
from kelpie.core.limits import BLOB_BYTES_MAX, PATH_BYTES_MAX, WORKSPACE_ENTRIES_MAX
from kelpie.core.quoting import quote_text
from kelpie.storage.files import digest_file, sync_directory, sync_file

_MODES: Final = 0o777


class TreeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One name in a listing.

    ``path`` is relative, with ``/`` between its parts. ``mode`` holds permissions alone. ``digest``
    and ``size`` are a file's, ``target`` a link's.
    """

    path: str
    kind: Literal["directory", "file", "link"]
    mode: int = 0
    size: int = 0
    digest: str = ""
    target: str = ""


class TreeListing(NamedTuple):
    """What lies in a directory, and what of it no listing can hold."""

    entries: tuple[TreeEntry, ...]
    left_out: tuple[str, ...]


def list_tree(root: Path) -> TreeListing:
    """List everything below ``root``, by path; reads every file.

    Raises:
        InvalidFieldError: A name is not UTF-8.
        LimitExceededError: There are too many names, or a file is too large.
    """
    entries: list[TreeEntry] = []
    left_out: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=False, onerror=_fail):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = Path(folder) / name
            entry = _entry(path, str(path.relative_to(root)))
            if entry is None:
                left_out.append(str(path.relative_to(root)))
            else:
                entries.append(entry)
        if len(entries) > WORKSPACE_ENTRIES_MAX:
            limit = WORKSPACE_ENTRIES_MAX
            raise LimitExceededError("workspace", actual=len(entries), limit=limit, unit="paths")
    entries.sort(key=lambda entry: entry.path.split("/"))
    return TreeListing(tuple(entries), tuple(left_out))


def _fail(error: OSError) -> None:
    raise error


def _entry(path: Path, name: str) -> TreeEntry | None:
    try:
        name.encode()
    except UnicodeEncodeError:
        problem = f"{quote_text(os.fsencode(name).decode(errors='backslashreplace'))} is not UTF-8"
        raise InvalidFieldError("workspace", f"{problem}; rename it") from None
    found = path.lstat()
    mode = found.st_mode & _MODES
    if stat.S_ISLNK(found.st_mode):
        return TreeEntry(path=name, kind="link", target=str(path.readlink()))
    if stat.S_ISDIR(found.st_mode):
        return TreeEntry(path=name, kind="directory", mode=mode)
    if not stat.S_ISREG(found.st_mode):
        return None
    if found.st_size > BLOB_BYTES_MAX:
        raise LimitExceededError(
            name, actual=found.st_size, limit=BLOB_BYTES_MAX, unit="bytes", hint="leave it out"
        )
    digest = digest_file(path)
    return TreeEntry(path=name, kind="file", mode=mode, size=found.st_size, digest=digest)


def check_entries(entries: Sequence[TreeEntry]) -> None:
    """Return if a listing that somebody else made can be built inside one directory.

    Raises:
        CorruptionError: A path leaves the directory, comes twice, or comes before its directory.
        LimitExceededError: There are too many.
    """
    if len(entries) > WORKSPACE_ENTRIES_MAX:
        limit = WORKSPACE_ENTRIES_MAX
        raise LimitExceededError("workspace", actual=len(entries), limit=limit, unit="paths")
    kinds: dict[str, str] = {"": "directory"}
    for entry in entries:
        parent = entry.path.rpartition("/")[0]
        parts = entry.path.split("/")
        is_plain = all(part not in {"", ".", ".."} and "\0" not in part for part in parts)
        is_short = len(entry.path.encode()) <= PATH_BYTES_MAX and "\0" not in entry.target
        # A link has no children here: nothing can be written through one.
        is_placed = kinds.get(parent) == "directory" and entry.path not in kinds
        is_whole = entry.kind != "file" or (is_digest(entry.digest) and entry.size >= 0)
        is_link = entry.kind != "link" or 0 < len(entry.target.encode()) <= PATH_BYTES_MAX
        if not (is_plain and is_short and is_placed and is_whole and is_link):
            message = f"the workspace's listing has {quote_text(entry.path)}, which cannot be built"
            raise CorruptionError(message, path=entry.path[:200])
        kinds[entry.path] = entry.kind


def build_tree(
    entries: Sequence[TreeEntry], target: Path, content: Callable[[Digest], Path]
) -> None:
    """Make what a checked listing says in the empty directory ``target``, durably.

    Args:
        entries: What `check_entries` let pass.
        target: An empty directory of this process alone.
        content: Where the content of a digest lies.
    """
    assert target.is_dir(), "there is a directory to fill"
    folders = [entry for entry in entries if entry.kind == "directory"]
    for entry in entries:
        path = target / entry.path
        match entry.kind:
            case "directory":
                path.mkdir(mode=0o700)
            case "link":
                path.symlink_to(entry.target)
            case _:
                _copy(content(Digest(entry.digest)), path, entry)
    for entry in reversed(folders):
        sync_directory(target / entry.path)
        (target / entry.path).chmod(entry.mode & _MODES)
    sync_directory(target)
    assert len(folders) <= len(entries), "a listing is made once"


def _copy(source: Path, path: Path, entry: TreeEntry) -> None:
    data = source.read_bytes()
    assert digest_bytes(data) == entry.digest, "what is staged was checked"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    sync_file(path)
    path.chmod(entry.mode & _MODES)
