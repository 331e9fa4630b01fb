"""A Diff Card on a terminal: everything a person must read before answering.

Invariant: nothing of the card is left out or clipped, and nothing in it can forge a line: every
line starts with the frame's own mark, long lines are broken, untrusted text is escaped.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from kelpie.app.text import break_lines, break_words, safe_line, safe_text

Paint = Callable[[str, str], str]
"""``paint(text, style)`` returns the text in a style of `kelpie.cli.output`, or unchanged."""

Wrap = Callable[[str, int], Iterator[str]]
"""``wrap(text, width)`` yields a line in pieces; what a machine will read breaks anywhere."""

_MARK: Final = "| "
_LABEL_WIDTH: Final = 9


def render_card(approval: Mapping[str, Any], *, width: int, now_ms: int, paint: Paint) -> list[str]:
    """Return the lines of an approval's card, each at most ``width`` (>= 30) cells.

    ``approval`` is an effect as ``/v1/approvals`` shows it, with its ``card``.
    """
    card = cast("dict[str, Any]", approval.get("card") or {})
    room = width - len(_MARK)
    title = _wrap(safe_line(str(card.get("title", ""))), room, "  ")
    lines = [paint(piece, "bold") for piece in title]
    lines += _facts(approval, card, room, now_ms, paint)
    for file in card.get("files") or ():
        lines += ["", *_file(file, room, paint)]
    return [(_MARK + line).rstrip() for line in lines]


def _facts(
    approval: Mapping[str, Any], card: Mapping[str, Any], room: int, now_ms: int, paint: Paint
) -> Iterator[str]:
    yield from _fact("approval", str(approval.get("effect_id", "")), room, paint)
    if card.get("argv"):
        yield from _fact("runs", shlex.join(card["argv"]), room, paint)
    for line in _lines(card.get("request")):
        yield from _fact("asks", line, room, paint)
    for number, reason in enumerate(card.get("reasons") or ()):
        yield from _fact("" if number else "why", reason, room, paint, wrap=break_words)
    for label in ("where", "undo"):
        if card.get(label):
            yield from _fact(label, str(card[label]), room, paint, wrap=break_words)
    for number, name in enumerate(_left_out(card)):
        yield from _fact("" if number else "discards", str(name), room, paint)
    if approval.get("state") == "waiting" and (due_ms := approval.get("due_ms")):
        yield from _fact("expires", _expiry(int(due_ms), now_ms), room, paint)


def _left_out(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield what will not land, a path on a line, and why."""
    names = card.get("left_out") or ()
    yield from names
    if hidden := max(int(card.get("left_out_count") or 0) - len(names), 0):
        yield f"and {hidden:,} more"
    if names:
        yield "(pipes, sockets, devices, names that are not text: no change can carry them)"


def _fact(
    label: str, value: str, room: int, paint: Paint, *, wrap: Wrap = break_lines
) -> Iterator[str]:
    head = paint(label.ljust(_LABEL_WIDTH), "cyan")
    for piece in wrap(safe_line(value), max(room - _LABEL_WIDTH, 2)):
        yield head + piece
        head = " " * _LABEL_WIDTH


def _file(file: Mapping[str, Any], room: int, paint: Paint) -> Iterator[str]:
    title = f"{file.get('change', '')} {file.get('path', '')}"
    for piece in _wrap(safe_line(title), room, "  "):
        yield paint(piece, "bold")
    if file.get("binary"):
        change = f"binary, {file.get('before') or 'absent'} -> {file.get('after') or 'absent'}"
        yield from _wrap(safe_line(change), room, "  ")
    if file.get("before") and file.get("before") == file.get("after"):
        yield "it stays as it is"
    yield from render_diff(str(file.get("diff") or ""), room, paint)
    if hidden := file.get("lines_hidden"):
        for piece in _wrap(f"... {hidden} more lines of diff are not shown", room, "  "):
            yield paint(piece, "yellow")


def render_diff(diff: str, room: int, paint: Paint) -> Iterator[str]:
    """Yield the lines of a unified diff, coloured, broken where they are too long."""
    for line in _lines(diff):
        style = _diff_style(line)
        # The mark of a broken line is none that a diff's own line can start with.
        for piece in _wrap(safe_text(line).expandtabs(4), room, "~ "):
            yield paint(piece, style) if style else piece


def _diff_style(line: str) -> str:
    if line.startswith(("---", "+++")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")


def _lines(text: object) -> list[str]:
    """Return lines that end with a newline; whatever else splitlines() knows is content."""
    return str(text).removesuffix("\n").split("\n") if text else []


def _wrap(text: str, room: int, mark: str = "") -> Iterator[str]:
    """Yield a line in pieces of at most ``room`` cells; all but the first begin with ``mark``."""
    pieces = break_lines(text, max(room - len(mark), 2))
    yield next(pieces)
    for piece in pieces:
        yield mark + piece


def _expiry(expires_ms: int, now_ms: int) -> str:
    at = datetime.fromtimestamp(expires_ms / 1000, UTC).astimezone().strftime("%H:%M:%S")
    minutes, seconds = divmod(max(expires_ms - now_ms, 0) // 1000, 60)
    if expires_ms <= now_ms:
        return f"{at}, which has passed; it counts as denied"
    return f"{at}, in {minutes} min {seconds} s; then it counts as denied"
