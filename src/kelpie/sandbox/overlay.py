"""A command's scratch layer as a change set.

Reads the upper directory of an overlay after its jail is dead. Everything in it was chosen by the
command: names, depths, kinds and counts are hostile input.

Source: Linux kernel documentation, filesystems/overlayfs (whiteouts and opaque directories).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import LimitExceededError
from kelpie.core.limits import PATH_BYTES_MAX, WORKSPACE_ENTRIES_MAX
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.paths import Root
from kelpie.sandbox.protocol import FileChange, FileState
from kelpie.sandbox.workspace import (
    ABSENT,
    DIRECTORY_DIGEST,
    BlockedPathError,
    kind_of,
    link_content,
    state_beneath,
)

_OPAQUE: Final = "user.overlay.opaque"
_SCRATCH_PATH_BYTES_MAX: Final = PATH_BYTES_MAX - 512  # the scratch's own path comes in front


class Harvest(NamedTuple):
    """What a scratch layer came to; ``left_out`` names what no change can carry, escaped."""

    changes: tuple[FileChange, ...]
    left_out: tuple[str, ...]


def harvest_layer(workspace: Path, upper: Path, blobs: Blobs) -> Harvest:
    """Return ``upper`` against ``workspace`` as changes, with new contents put into ``blobs``.

    Sockets, pipes, devices, names that are not UTF-8 and paths that are too long are left out and
    named. Blocks on the disk.

    Raises:
        LimitExceededError: There are more changes than one set may have.
    """
    with Root(workspace) as root:
        harvester = _Harvester(root, upper, blobs)
        harvester.run()
    ordered = sorted(harvester.changes.values(), key=lambda change: change.path.split("/"))
    return Harvest(tuple(ordered), tuple(sorted(harvester.left_out)))


class _Harvester:
    def __init__(self, root: Root, upper: Path, blobs: Blobs) -> None:
        self.changes: dict[str, FileChange] = {}
        self.left_out: list[str] = []
        self._contents: dict[Digest, Path | bytes] = {}
        self._root = root
        self._upper = upper
        self._blobs = blobs

    def run(self) -> None:
        """Walk the layer without recursion: its depth is the command's choice.

        Contents are stored once all of it was seen: a layer with too many changes costs no blob,
        and many files of one content cost one.
        """
        pending: list[tuple[str, ...]] = [()]
        while pending:
            parts = pending.pop()
            directory = self._upper.joinpath(*parts)
            _make_readable(directory)
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                inner = (*parts, name)
                if self._visit(inner):
                    pending.append(inner)
        new = {d: each for d, each in self._contents.items() if not self._blobs.exists(d)}
        stored = self._blobs.put_many(list(new.values()))
        assert list(stored) == list(new), "nobody writes to the layer of a dead jail"

    def _visit(self, parts: tuple[str, ...]) -> bool:
        """Note the change of one path; return whether it is a directory to enter."""
        if not _is_portable(parts):
            self.left_out.append(_show(parts))
            return False
        path = self._upper.joinpath(*parts)
        found = path.lstat()
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            self._remove_tree(parts)
            return False
        mode = stat.S_IMODE(found.st_mode) & 0o777
        match kind_of(found.st_mode):
            case "directory":
                self._visit_directory(parts, path, mode)
                return True
            case "file":
                self._visit_file(parts, path, mode)
            case "link":
                self._visit_link(parts, path, mode)
            case _:
                self.left_out.append(_show(parts))
        return False

    def _visit_directory(self, parts: tuple[str, ...], path: Path, mode: int) -> None:
        lower = self._lower(parts)
        if lower.kind == "directory" and _is_opaque(path):
            for inner in self._children(parts):
                if not os.path.lexists(self._upper.joinpath(*inner)):
                    self._remove_tree(inner)
        if lower.kind != "directory" or lower.mode != mode:
            self._note(parts, "directory", lower, DIRECTORY_DIGEST, mode)

    def _visit_file(self, parts: tuple[str, ...], path: Path, mode: int) -> None:
        lower = self._lower(parts)
        _make_readable(path)
        after = _digest_file(path)
        if (lower.kind, lower.digest, lower.mode) != ("file", after, mode):
            self._contents[after] = path
            self._replace_tree(parts, lower)
            self._note(parts, "file", lower, after, mode)

    def _visit_link(self, parts: tuple[str, ...], path: Path, mode: int) -> None:
        lower = self._lower(parts)
        content = link_content(os.readlink(path))  # noqa: PTH115  # bytes that are not UTF-8
        after = digest_bytes(content)
        if (lower.kind, lower.digest) != ("link", after):
            self._contents[after] = content
            self._replace_tree(parts, lower)
            self._note(parts, "link", lower, after, mode)

    def _replace_tree(self, parts: tuple[str, ...], lower: FileState) -> None:
        """Remove what a directory held that is now something else."""
        if lower.kind == "directory":
            for inner in self._children(parts):
                self._remove_tree(inner)

    def _remove_tree(self, parts: tuple[str, ...]) -> None:
        pending = [parts]
        while pending:
            current = pending.pop()
            if not _is_portable(current):
                self.left_out.append(_show(current))
                continue
            lower = self._lower(current)
            if lower.kind == "directory":
                pending += self._children(current)
            if lower.kind != "absent":
                self._note(current, _carried(lower), lower, "", 0)

    def _note(
        self, parts: tuple[str, ...], kind: str, lower: FileState, after: str, mode: int
    ) -> None:
        assert kind in {"file", "directory", "link"}, "only these travel in a change"
        path = "/".join(parts)
        self.changes[path] = FileChange(
            path=path,
            kind="file" if kind == "file" else "directory" if kind == "directory" else "link",
            before=lower.digest,
            after=after,
            mode=mode,
        )
        limit = WORKSPACE_ENTRIES_MAX
        if len(self.changes) > limit:
            actual = len(self.changes)
            raise LimitExceededError("changes", actual=actual, limit=limit, unit="paths")

    def _lower(self, parts: tuple[str, ...]) -> FileState:
        try:
            return state_beneath(self._root, parts)
        except BlockedPathError:
            return ABSENT

    def _children(self, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        with self._root.directory(parts) as descriptor:
            names = os.listdir(descriptor)  # noqa: PTH208  # pathlib has no descriptors
        return ((*parts, name) for name in sorted(names))


def _carried(state: FileState) -> str:
    """Return the kind under which a removal travels; a removed socket counts as a file."""
    return "file" if state.kind == "other" else state.kind


def _digest_file(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, _OPAQUE, follow_symlinks=False) == b"y"
    except OSError:
        return False


def _is_portable(parts: tuple[str, ...]) -> bool:
    try:
        return len("/".join(parts).encode()) <= _SCRATCH_PATH_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _show(parts: tuple[str, ...]) -> str:
    text = "/".join(parts).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text if len(text) <= 200 else f"{text[:200]}…"


def _make_readable(path: Path) -> None:
    """Let an ordinary user read what its own command made unreadable; the layer is ours."""
    mode = stat.S_IMODE(path.lstat().st_mode)
    wanted = mode | (0o500 if path.is_dir() else 0o400)
    if wanted != mode and os.geteuid() != 0:
        path.chmod(wanted)
