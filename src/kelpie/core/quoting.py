"""Untrusted text inside a message: quoted, escaped, cut.

Paths, names and addresses come from models, files and callers. Inside a message they must not end
the line, move a cursor, reorder what is around them, or fill a screen.
"""

from __future__ import annotations

from typing import Final

QUOTED_CHARS_MAX: Final = 200
"""Characters that are shown of a value; as long as most paths, and two lines of a terminal."""


def quote_text(text: str) -> str:
    """Return ``text`` in quotes, on one line, with what is not printable escaped.

    An ellipsis behind the closing quote says that there is more of it.
    """
    more = "…" if len(text) > QUOTED_CHARS_MAX else ""
    return f"{text[:QUOTED_CHARS_MAX]!r}{more}"
