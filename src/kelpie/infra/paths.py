"""Paths of units: relative to a target's root, ``/``-separated, already normal.

Pure text; never touches a disk. A path that passes `find_path_problem` names something strictly
inside the root as long as no directory on its way is a link, which planning checks.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from kelpie.core.errors import InvalidFieldError
from kelpie.core.limits import PATH_BYTES_MAX
from kelpie.core.quoting import quote_text

_SEGMENT_BYTES_MAX: Final = 255  # NAME_MAX of every Linux file system


def find_path_problem(path: str) -> str:
    """Return why ``path`` cannot be a unit's path, or an empty text if it can."""
    if not path:
        return "must not be empty"
    if path.startswith("/"):
        return "must be relative to the root, without a leading /"
    if any(character < " " or character == "\x7f" for character in path):
        return "must not contain control characters"
    size = len(path.encode())
    if size > PATH_BYTES_MAX:
        return f"is {size:,} bytes long, the limit is {PATH_BYTES_MAX:,} bytes"
    for segment in path.split("/"):
        if segment in {"", ".", ".."}:
            return "must not contain '..', '.', an empty segment or a trailing /"
        if len(segment.encode()) > _SEGMENT_BYTES_MAX:
            return f"has a segment of more than {_SEGMENT_BYTES_MAX} bytes"
    return ""


def list_ancestors(path: str) -> tuple[str, ...]:
    """Return the directories above ``path`` inside the root, nearest first."""
    segments = path.split("/")
    return tuple("/".join(segments[:count]) for count in range(len(segments) - 1, 0, -1))


def require_root(root: str) -> str:
    """Return ``root`` if it is an absolute, normal path.

    Two names of one directory count as two roots: a caller resolves links first.

    Raises:
        InvalidFieldError: It is relative, not normal, too long or has control characters.
    """
    normal = PurePosixPath(root)
    is_plain = root.isprintable() and len(root.encode(errors="replace")) <= PATH_BYTES_MAX
    is_normal = str(normal) == root and ".." not in normal.parts and not root.startswith("//")
    if is_plain and is_normal and normal.is_absolute():
        return root
    problem = f"{quote_text(root)} must be an absolute directory without '.', '..' or a trailing /"
    raise InvalidFieldError("root", problem)
