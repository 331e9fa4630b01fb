"""How the end of an effect is told to a model: plainly, and never better than it is.

Pure. A text beyond ``TOOL_RETURN_BYTES_MAX`` is cut, and says so.
"""

from __future__ import annotations

from typing import Any

from kelpie.core.errors import InvalidFieldError
from kelpie.core.limits import ERROR_TEXT_CHARS_MAX, PATH_BYTES_MAX, TOOL_RETURN_BYTES_MAX
from kelpie.core.quoting import quote_text
from kelpie.effects.model import EffectRecord
from kelpie.tools.model import ToolReturn


def explain_failure(record: EffectRecord, what: str) -> ToolReturn:
    """Return what became of an effect that is not ``done``; ``what`` names it: "the command"."""
    assert record.state != "done", "a done effect has a result of its own"
    assert what, "the sentence needs a subject"
    outcome = record.outcome
    error = (outcome.error if outcome else "") or record.note
    detail = f": {error[:ERROR_TEXT_CHARS_MAX]}" if error else ""
    match record.state:
        case "denied":
            text = f"Denied: {what} was refused and nothing was done{detail}"
        case "expired":
            text = f"Expired: nobody answered in time, so nothing was done ({what})"
        case "voided":
            text = (
                f"Voided: the target of {what} changed in the meantime, nothing was done{detail}. "
                "Look at it again before you ask again."
            )
        case "unknown":
            text = (
                f"Unknown outcome: it is not known whether {what} took effect{detail}. "
                "Do not assume that it did or that it did not: look first, and do not simply repeat"
            )
        case "cancelled":
            text = f"Cancelled: {what} was given up{detail}"
        case _:
            text = f"Failed: {what} failed{detail}"
    return ToolReturn(text=text, ok=False)


def cut_text(text: str, size_bytes_max: int = TOOL_RETURN_BYTES_MAX) -> str:
    """Return ``text``, cut to a size in UTF-8 bytes with a last line that says so."""
    data = text.encode(errors="replace")
    if len(data) <= size_bytes_max:
        return data.decode()
    note = f"\n[cut: the first {{shown:,}} of {len(data):,} bytes are shown]"
    room = size_bytes_max - len(note) - 8
    shown = data[:room].decode(errors="ignore")
    return shown + note.format(shown=len(shown.encode()))


def require_path(arguments: dict[str, Any], field: str = "path") -> str:
    """Return a path argument that lies beneath the workspace, as written.

    A first fence with a clear message; whoever touches the path resolves it beneath the root again.

    Raises:
        InvalidFieldError: It is empty, absolute, too long, climbs with ``..`` or holds a NUL.
    """
    path = str(arguments.get(field, "."))
    problem = ""
    if not path or "\0" in path:
        problem = "must be a path without NUL characters"
    elif path.startswith("/") or ".." in path.split("/"):
        problem = f"{quote_text(path)} must be relative to the workspace and stay inside it"
    elif len(path.encode(errors="replace")) > PATH_BYTES_MAX:
        problem = f"must be at most {PATH_BYTES_MAX:,} bytes"
    if problem:
        raise InvalidFieldError(field, problem)
    return path


def count_of(count: int, noun: str) -> str:
    """Return ``3 paths``, or ``1 path``: a number with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
