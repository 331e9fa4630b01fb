"""The files of this host as executors and plans use them: change sets over a root, off the loop.

The one implementation of `WorkspaceFiles`. What an application replaces is first kept as a blob, so
that the record of every change says how to go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import InputError, TargetMovedError
from kelpie.core.limits import WORKSPACE_FILE_BYTES_MAX
from kelpie.effects.model import FileDiff
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.blocking import run_to_end
from kelpie.sandbox.changes import apply_changes, reconcile_changes
from kelpie.sandbox.diffs import diff_changes
from kelpie.sandbox.protocol import FileChange, FileState
from kelpie.sandbox.workspace import Workspace
from kelpie.tools.workspace import Applied, Standing

_NEW_FILE_MODE = 0o644
_KEEP_BYTES: Final = (
    2 * WORKSPACE_FILE_BYTES_MAX
)  # of former contents in memory before they are put


class LocalFiles:
    """Reads and changes files beneath roots of this host."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def state(self, root: Path, path: str) -> FileState:
        """Return what ``path`` is now.

        Raises:
            InputError: The path leaves the root or leads through a link.
        """
        return await run_to_end(Workspace(root).state, path)

    async def put_blob(self, data: bytes) -> Digest:
        """Keep ``data`` durably and return its name."""
        return await run_to_end(self._blobs.put_bytes, data)

    async def resolve_write(self, root: Path, path: str, content: bytes) -> FileChange:
        """Return the change that gives ``path`` this content, keeping the content as a blob.

        Raises:
            InputError: The path leaves the root, or is no place for a file.
        """
        state = await self.state(root, path)
        after = await self.put_blob(content)
        mode = state.mode if state.kind == "file" else _NEW_FILE_MODE
        return FileChange(path=path, kind="file", before=state.digest, after=after, mode=mode)

    async def diff(self, root: Path, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        """Return the differences that ``changes`` would make, bounded as a card is.

        Raises:
            TargetMovedError: A path is not at its ``before`` any more.
            InputError: A path is invalid.
        """
        diffs = await run_to_end(diff_changes, root, tuple(changes), self._blobs)
        return tuple(msgspec.convert(diff._asdict(), FileDiff) for diff in diffs)

    async def apply(self, root: Path, changes: Sequence[FileChange]) -> Applied:
        """Bring every path to its ``after``; see `WorkspaceFiles.apply`."""
        return await run_to_end(self._apply, root, tuple(changes))

    async def reconcile(self, root: Path, changes: Sequence[FileChange]) -> Standing:
        """Return where the paths stand; changes nothing."""
        match await run_to_end(reconcile_changes, root, tuple(changes)):
            case "applied":
                return "applied"
            case "moved":
                return "moved"
            case _:
                return "pending"

    def _apply(self, root: Path, changes: tuple[FileChange, ...]) -> Applied:
        before = self._keep_former(root, changes)
        try:
            apply_changes(root, changes, self._blobs)
        except TargetMovedError as error:
            moved = str(error.fields["path"])
            done = [each for each in changes if reconcile_changes(root, [each]) == "applied"]
            paths = tuple(each.path for each in done) if error.fields["applied"] else ()
            return Applied(
                paths, (moved,), {path: before[path] for path in paths if path in before}
            )
        return Applied(tuple(change.path for change in changes), (), before)

    def _keep_former(self, root: Path, changes: tuple[FileChange, ...]) -> dict[str, str]:
        """Keep what is about to be replaced; a file larger than a tool may read is left out."""
        kept: dict[str, str] = {}
        pending: dict[str, bytes] = {}
        pending_bytes = 0
        workspace = Workspace(root)
        for change in changes:
            if not change.before or change.kind != "file" or change.before == change.after:
                continue
            try:
                content = workspace.read(change.path, bytes_max=WORKSPACE_FILE_BYTES_MAX)
            except InputError:
                continue
            if digest_bytes(content) != change.before:  # it is replaced already, or moved
                continue
            pending[change.path] = content
            pending_bytes += len(content)
            if pending_bytes > _KEEP_BYTES:
                kept |= self._put(pending)
                pending, pending_bytes = {}, 0
        return kept | self._put(pending)

    def _put(self, contents: dict[str, bytes]) -> dict[str, str]:
        """Put contents by path in one go; return their digests by path."""
        digests = self._blobs.put_many(list(contents.values()))
        return dict(zip(contents, digests, strict=True))


class LocalTarget:
    """One root of this host, as a plan's target."""

    def __init__(self, root: Path, files: LocalFiles) -> None:
        self._root = root
        self._files = files

    async def state(self, path: str) -> FileState:
        """Return what ``path`` is now."""
        return await self._files.state(self._root, path)

    async def put_blob(self, data: bytes) -> Digest:
        """Keep ``data`` in the blob store and return its name."""
        return await self._files.put_blob(data)

    async def diff(self, changes: Sequence[FileChange]) -> tuple[FileDiff, ...]:
        """Return how each change would look against the present state, in the same order."""
        return await self._files.diff(self._root, changes)
