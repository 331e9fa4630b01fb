"""On which line of a TOML text a key stands: the standard parser does not say.

Only for texts that the parser has accepted. A key inside an inline table has no line of its own;
the reader falls back to the line of the table it is in.
"""

from __future__ import annotations

import re
from typing import Final

_TABLE: Final = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?\Z")
_KEY: Final = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[^=\s]+)*)\s*=""")
_FENCE: Final = re.compile(r'"""|\'\'\'')


def find_lines(text: str) -> dict[str, int]:
    """Return the line (from 1) on which each dotted key or table first stands."""
    lines: dict[str, int] = {}
    prefix, fence = "", ""
    for number, line in enumerate(text.splitlines(), start=1):
        inside = bool(fence)
        for mark in _FENCE.findall(line):
            fence = "" if fence == mark else fence or mark
        if inside:
            continue
        if table := _TABLE.match(line):
            prefix = _dotted(table[1])
            _note(lines, prefix, number)
        elif key := _KEY.match(line):
            _note(lines, f"{prefix}.{_dotted(key[1])}".lstrip("."), number)
    return lines


def _note(lines: dict[str, int], key: str, number: int) -> None:
    """Give a key, and the tables it implies, the line where they first stand."""
    while key:
        lines.setdefault(key, number)
        key = key.rpartition(".")[0]


def _dotted(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
