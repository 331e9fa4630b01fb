"""The hands of ``files.apply``: a written file, or the landing of what a command changed.

The card is made from the very change set that is applied: an approval binds to its digests, before
and after. Application looks at every path again at its write, and touches nothing when one has
moved. An interrupted application is read back and finished.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from kelpie.core import limits
from kelpie.core.digests import digest_value
from kelpie.core.errors import InvalidFieldError, KelpieError, LimitExceededError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Order
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation, Promise
from kelpie.sandbox.protocol import FileChange
from kelpie.tools.answers import count_of
from kelpie.tools.workspace import (
    Allowed,
    WorkspaceFiles,
    dump_changes,
    read_changes,
    require_root,
)

KIND: Final = "files.apply"
_MOVED_SHOWN: Final = 5
_TITLE_CHARS_MAX: Final = 200


class _Write(msgspec.Struct, frozen=True):
    path: str
    content: str


class _LeftOut(msgspec.Struct, frozen=True):
    """What a command left that no change can carry; ``left_out`` names the first of them."""

    left_out: tuple[str, ...] = ()
    left_out_count: int = 0


class FilesApplyExecutor:
    """The `Executor` of change sets; ``allowed`` says which roots are workspaces."""

    __slots__ = ("_allowed", "_files", "concurrency_max")

    def __init__(
        self,
        *,
        files: WorkspaceFiles,
        allowed: Allowed,
        concurrency_max: int = limits.FILES_CONCURRENT_MAX,
    ) -> None:
        assert concurrency_max > 0, "an executor runs something"
        self._files = files
        self._allowed = allowed
        self.concurrency_max = concurrency_max

    @property
    def kind(self) -> str:
        """The effect kind it runs."""
        return KIND

    def promise(self, args: dict[str, Any]) -> Promise:
        """Return ``reconcilable``: digests tell what an interrupted application did."""
        assert args is not None, "arguments are a mapping"
        return "reconcilable"

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Resolve the change set and show it as unified diffs; changes no file."""
        try:
            root = require_root(record.args, self._allowed)
            changes = await self._resolve(root, record.args)
            if await self._files.reconcile(root, changes) == "moved":
                text = "the target changed since; look at it again before you ask again"
                return Outcome(status="failed", error=text, code="target_changed", sent=False)
            diffs = await self._files.diff(root, changes)
            left_out = _read_left_out(record.args)
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=False)
        card = DiffCard(
            title=_title(record.args, changes),
            files=diffs,
            where=f"the workspace {root} of {actor.key}",
            undo=_undo(changes),
            left_out=left_out.left_out,
            left_out_count=left_out.left_out_count,
        )
        facts = {
            "paths": [change.path for change in changes],
            "changes": sum(change.before != change.after for change in changes),
        }
        return Preparation(
            card=card,
            target=digest_value([[change.path, change.before] for change in changes]),
            resolved={"changes": dump_changes(changes)},
            facts=facts,
        )

    async def execute(self, order: Order) -> Outcome:
        """Apply the approved change set, or nothing when a path has moved.

        Raises:
            KelpieError: The workspace could not be written; reconciling tells how far it came.
        """
        try:
            root, changes = self._approved(order)
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=False)
        applied = await self._files.apply(root, changes)
        result: dict[str, Any] = {"applied": list(applied.paths), "before": applied.before}
        if not applied.moved:
            assert len(applied.paths) == len(changes), "every path is where it should be"
            return Outcome(status="done", result=result)
        hidden = len(applied.moved) - _MOVED_SHOWN
        more = f" and {hidden:,} more" if hidden > 0 else ""
        moved = f"changed meanwhile: {', '.join(applied.moved[:_MOVED_SHOWN])}{more}"
        if not applied.paths:
            return Outcome(status="voided", result=result, error=moved, code="target_changed")
        partly = f"only {len(applied.paths):,} of {len(changes):,} paths were written; {moved}"
        return Outcome(status="failed", result=result, error=partly, code="target_changed")

    async def reconcile(self, order: Order) -> Outcome | None:
        """Return ``done`` if all of it was applied; None if it can be (re)applied as it is."""
        try:
            root, changes = self._approved(order)
            standing = await self._files.reconcile(root, changes)
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code)
        match standing:
            case "applied":
                paths = [change.path for change in changes]
                before = {change.path: change.before for change in changes if change.before}
                return Outcome(status="done", result={"applied": paths, "before": before})
            case "pending":
                return None
            case "moved":
                text = "interrupted, and a path was changed by something else since: look at it"
                return Outcome(status="failed", error=text, code="target_changed")

    async def _resolve(self, root: Path, args: dict[str, Any]) -> tuple[FileChange, ...]:
        if "write" not in args:
            return read_changes(args.get("changes"))
        try:
            write = msgspec.convert(args["write"], _Write)
        except msgspec.ValidationError as error:
            raise InvalidFieldError("write", str(error)) from error
        data = write.content.encode()
        if len(data) > limits.WORKSPACE_FILE_BYTES_MAX:
            limit = limits.WORKSPACE_FILE_BYTES_MAX
            raise LimitExceededError("content", actual=len(data), limit=limit, unit="bytes")
        return (await self._files.resolve_write(root, write.path, data),)

    def _approved(self, order: Order) -> tuple[Path, tuple[FileChange, ...]]:
        """Return what was approved: the prepared change set, never one resolved anew."""
        preparation = order.record.preparation
        if preparation is None:
            raise InvalidFieldError("preparation", "is missing, so nothing was approved")
        root = require_root(order.record.args, self._allowed)
        return root, read_changes(preparation.resolved.get("changes"))


def _read_left_out(args: dict[str, Any]) -> _LeftOut:
    try:
        return msgspec.convert(args, _LeftOut)
    except msgspec.ValidationError as error:
        raise InvalidFieldError("left_out", str(error)) from error


def _title(args: dict[str, Any], changes: Sequence[FileChange]) -> str:
    command = args.get("from_command")
    if command:
        line = shlex.join(str(part) for part in command)
        return f"Land {count_of(len(changes), 'changed path')} of: {line}"[:_TITLE_CHARS_MAX]
    return f"Write {changes[0].path}"[:_TITLE_CHARS_MAX]


def _undo(changes: Sequence[FileChange]) -> str:
    created = sum(not change.before for change in changes)
    replaced = len(changes) - created
    parts: list[str] = []
    if created:
        parts.append(f"remove {count_of(created, 'created path')}")
    if replaced:
        parts.append(
            f"put back the former content of {count_of(replaced, 'path')}, kept as blobs under the "
            "digests in the outcome"
        )
    return "; ".join(parts)
