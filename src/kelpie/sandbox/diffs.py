"""Change sets as unified diffs that a person can trust on a terminal.

What is shown is what will be written: every control or direction character is escaped, whatever
is left out is counted, and the old side is read from the workspace and must match its digest.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import LimitExceededError, TargetMovedError
from kelpie.core.limits import DIFF_LINES_MAX, WORKSPACE_FILE_BYTES_MAX
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.paths import Root, parse_path
from kelpie.sandbox.protocol import FileChange, FileState
from kelpie.sandbox.workspace import ABSENT, BlockedPathError, Workspace, link_target, state_beneath

_LINE_CHARS_MAX: Final = 2_000  # a longer line is cut, and says how much is missing
_COMPARED_LINES_MAX: Final = 4_000  # beyond this, comparing costs more than it explains
_CONTEXT_LINES: Final = 3
_SHOWN_CONTROLS: Final = {"\t"}
_HIDDEN_CATEGORIES: Final = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}

ChangeKind = Literal["create", "update", "delete"]


class PathDiff(NamedTuple):
    """How one path would change; of binary content ``diff`` holds the heading alone.

    ``lines_hidden`` counts the lines of the diff that are not shown. ``path`` is as it is on disk:
    pass it through `escape_text` before it meets a terminal.
    """

    path: str
    change: ChangeKind
    diff: str
    binary: bool
    lines_hidden: int
    before: str
    after: str


class _Side(NamedTuple):
    label: str
    lines: list[str]
    binary: bool


def diff_changes(
    root: Path,
    changes: Sequence[FileChange],
    blobs: Blobs,
    *,
    lines_max: int = DIFF_LINES_MAX,
) -> tuple[PathDiff, ...]:
    """Return one diff per change, at most ``lines_max`` lines in all. Blocks on the disk.

    Raises:
        TargetMovedError: A path is not at its ``before`` any more.
        NotFoundError: A blob or the root is missing.
        InvalidFieldError: A path is invalid.
    """
    left = lines_max
    diffs: list[PathDiff] = []
    for change in changes:
        diff = _diff_one(Workspace(root), change, blobs, left)
        left -= diff.diff.count("\n")
        diffs.append(diff)
    return tuple(diffs)


def escape_text(text: str) -> str:
    """Return ``text`` with everything that could move a cursor or reorder a line escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character in _SHOWN_CONTROLS:
        return character
    if unicodedata.category(character) not in _HIDDEN_CATEGORIES:
        return character
    return character.encode("unicode_escape", "backslashreplace").decode()


def _diff_one(workspace: Workspace, change: FileChange, blobs: Blobs, lines_max: int) -> PathDiff:
    state = _state(workspace, change)
    if state.digest != change.before:
        raise TargetMovedError(change.path, applied=0)
    kind: ChangeKind = "update" if change.before else "create"
    if not change.after:
        kind = "delete"
    old, new = _old_side(workspace, change, state), _new_side(change, blobs, state)
    binary = old.binary or new.binary
    lines = list(_heading(change, state))
    if not binary:
        lines += _unified(old, new)
    shown = lines[: max(lines_max, 0)]
    return PathDiff(
        path=change.path,
        change=kind,
        diff="".join(f"{line}\n" for line in shown),
        binary=binary,
        lines_hidden=len(lines) - len(shown),
        before=change.before,
        after=change.after,
    )


def _state(workspace: Workspace, change: FileChange) -> FileState:
    try:
        with Root(workspace.root) as root:
            return state_beneath(root, parse_path(change.path))
    except BlockedPathError:
        return ABSENT  # a file or link that this set turns into a directory is in the way


def _heading(change: FileChange, state: FileState) -> Iterator[str]:
    kind_changes = change.after and state.kind not in {"absent", change.kind}
    if kind_changes:
        yield f"{state.kind} becomes {change.kind}"
    if not change.after:
        yield f"deleted {state.kind}, mode {state.mode:o}"
    elif state.kind == "absent" or kind_changes:
        yield f"new {change.kind}, mode {change.mode:o}"
    elif state.mode != change.mode and change.kind != "link":
        yield f"old mode {state.mode:o}"
        yield f"new mode {change.mode:o}"


def _old_side(workspace: Workspace, change: FileChange, state: FileState) -> _Side:
    if state.kind != "file":
        return _Side("/dev/null", [], binary=False)
    try:
        content = workspace.read(change.path)
    except LimitExceededError:
        return _Side(change.path, [], binary=True)
    if digest_bytes(content) != change.before:
        raise TargetMovedError(change.path, applied=0)
    return _decode(f"a/{escape_text(change.path)}", content)


def _new_side(change: FileChange, blobs: Blobs, state: FileState) -> _Side:
    if not change.after or change.kind == "directory":
        return _Side("/dev/null", [], binary=False)
    if change.kind == "file" and change.before == change.after and state.kind == "file":
        return _Side("", [], binary=False)  # only the mode changes; the heading says so
    content = blobs.get(Digest(change.after))
    if change.kind == "link":
        target = escape_text(link_target(content))
        return _Side(f"b/{escape_text(change.path)}", [f"-> {target}"], binary=False)
    return _decode(f"b/{escape_text(change.path)}", content)


def _decode(label: str, content: bytes) -> _Side:
    if b"\0" in content or len(content) > WORKSPACE_FILE_BYTES_MAX:
        return _Side(label, [], binary=True)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _Side(label, [], binary=True)
    lines = text.split("\n")
    if lines[-1]:
        lines[-1] += "\n\\ No newline at end of file"
    else:
        lines.pop()
    return _Side(label, lines, binary=False)


def _unified(old: _Side, new: _Side) -> Iterator[str]:
    if not new.label or (not old.lines and not new.lines):
        return
    if max(len(old.lines), len(new.lines)) <= _COMPARED_LINES_MAX:
        diff = difflib.unified_diff(
            old.lines, new.lines, old.label, new.label, lineterm="", n=_CONTEXT_LINES
        )
    else:
        diff = _replace_middle(old, new)
    for line in diff:
        # Only the marker of a missing last newline holds one.
        for piece in line.split("\n"):
            yield _shorten(escape_text(piece))


def _replace_middle(old: _Side, new: _Side) -> Iterator[str]:
    """Yield a diff that keeps the common head and tail and replaces all between them."""
    shortest = min(len(old.lines), len(new.lines))
    head = 0
    while head < shortest and old.lines[head] == new.lines[head]:
        head += 1
    tail = 0
    while tail < shortest - head and old.lines[-1 - tail] == new.lines[-1 - tail]:
        tail += 1
    gone, come = old.lines[head : len(old.lines) - tail], new.lines[head : len(new.lines) - tail]
    yield f"--- {old.label}"
    yield f"+++ {new.label}"
    yield f"@@ -{head + bool(gone)},{len(gone)} +{head + bool(come)},{len(come)} @@"
    yield from (f"-{line}" for line in gone)
    yield from (f"+{line}" for line in come)


def _shorten(line: str) -> str:
    if len(line) <= _LINE_CHARS_MAX:
        return line
    return f"{line[:_LINE_CHARS_MAX]} [{len(line) - _LINE_CHARS_MAX:,} more characters]"
