"""Untrusted text on a terminal: what it may contain, how wide it is, where it breaks.

Models, files and servers write much of what is printed. Control characters could move the cursor
over a Diff Card or forge one, and direction marks could reorder an argv, so they are shown
escaped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

# C0 without tab and newline, DEL and C1, line separators, marks and overrides of direction,
# invisible and tag characters, lone surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def safe_text(text: str) -> str:
    """Return ``text`` with everything but printable characters, newline and tab escaped."""
    return _UNSAFE.sub(_escape, text)


def safe_line(text: str) -> str:
    """Return ``text`` as one printable line: newlines and tabs are escaped too."""
    return safe_text(text).replace("\n", "\\n").replace("\t", "\\t")


def display_width(text: str) -> int:
    """Return how many terminal cells ``text`` takes."""
    return sum(_cells(character) for character in text)


def clip(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` cells; an ellipsis marks what is missing."""
    if display_width(text) <= width:
        return text
    return next(break_lines(text, max(width - 1, 1))) + "…"


def break_lines(text: str, width: int) -> Iterator[str]:
    """Yield the one line ``text`` in pieces of at most ``width`` (>= 2) cells; loses nothing."""
    piece, used = "", 0
    for character in text:
        cells = _cells(character)
        if used + cells > width and piece:
            yield piece
            piece, used = "", 0
        piece += character
        used += cells
    yield piece


def break_words(text: str, width: int) -> Iterator[str]:
    """Yield the one line ``text`` as `break_lines` does, but after a space where there is one."""
    while display_width(text) > width:
        piece = next(break_lines(text, width))
        piece = piece[: piece.rfind(" ") + 1] or piece
        yield piece
        text = text[len(piece) :]
    yield text


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
