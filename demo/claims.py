"""What the demonstration claims, and how it is told.

A claim that does not hold ends the story at once: nothing printed after it could be trusted.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import Final, NamedTuple, TextIO

WIDTH: Final = 80
LINES_MAX: Final = 60
"""How many lines of a program's output are quoted unless somebody says otherwise."""
_COLORS: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}
_SHOWN_CHARS_MAX: Final = 1_500


class ClaimError(Exception):
    """A claim that does not hold, with what was expected and what was seen."""

    def __init__(self, claim: str, expected: object, seen: object) -> None:
        super().__init__(claim)
        self.claim = claim
        self.expected = _clip(expected)
        self.seen = _clip(seen)


class Held(NamedTuple):
    """A claim that was checked and holds, under the heading it was made."""

    chapter: str
    text: str


class Narrator:
    """Prints the story and keeps the claims that were checked."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colored = out.isatty() and not os.environ.get("NO_COLOR")
        self._began_s = time.monotonic()
        self._chapter = ""
        self._chapters = 0
        self.held: list[Held] = []

    @property
    def colored(self) -> bool:
        """Whether colors are seen."""
        return self._colored

    @property
    def elapsed_s(self) -> float:
        """How long the story has taken."""
        return time.monotonic() - self._began_s

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._chapters += 1
        self._chapter = title
        self.line()
        self.line(self.paint(f"{self._chapters}. {title}", "bold"))

    def say(self, text: str) -> None:
        """Tell what happens, broken into lines."""
        indent = "  "
        for line in textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent):
            self.line(line)

    def quote(self, text: str, *, lines_max: int = LINES_MAX) -> None:
        """Print what a program said, as it said it; what is left out is counted."""
        lines = text.rstrip("\n").split("\n")
        for line in lines[:lines_max]:
            self.line(f"    {line}".rstrip())
        if len(lines) > lines_max:
            self.line(self.paint(f"    ({len(lines) - lines_max} more lines)", "dim"))

    def piece(self, text: str) -> None:
        """Print a piece of a stream, at once."""
        self._out.write(text)
        self._out.flush()

    def line(self, text: str = "") -> None:
        """Print one line."""
        print(text, file=self._out, flush=True)

    def paint(self, text: str, color: str) -> str:
        """Return the text in a color, if somebody looks."""
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if self._colored else text

    def equal(self, claim: str, *, expected: object, seen: object) -> None:
        """Claim that two values are the same.

        Raises:
            ClaimError: They are not.
        """
        if expected != seen:
            raise ClaimError(claim, expected, seen)
        self._hold(claim)

    def true(self, claim: str, holds: object, *, expected: object, seen: object) -> None:
        """Claim that a condition holds; ``expected`` says which, ``seen`` what it was about.

        Raises:
            ClaimError: It does not.
        """
        if not holds:
            raise ClaimError(claim, expected, seen)
        self._hold(claim)

    def _hold(self, claim: str) -> None:
        self.held.append(Held(self._chapter, claim))
        mark = self.paint("ok", "green")
        first, *rest = textwrap.wrap(claim, WIDTH - 6)
        self.line(f"  {mark}  {first}")
        for line in rest:
            self.line(f"      {line}")

    def summarize(self) -> None:
        """Print how many claims hold, chapter by chapter."""
        counts: dict[str, int] = {}
        for held in self.held:
            counts[held.chapter] = counts.get(held.chapter, 0) + 1
        self.line()
        self.line(self.paint("What was checked", "bold"))
        for chapter, count in counts.items():
            self.line(f"  {chapter} {'.' * (WIDTH - 8 - len(chapter))} {count:>3}")
        total = f"All {len(self.held)} claims hold, checked in {self.elapsed_s:.0f} s."
        self.line(self.paint(total, "green"))

    def confess(self, error: ClaimError) -> None:
        """Print the claim that does not hold."""
        self.line()
        self.line(self.paint(f"A claim does not hold: {error.claim}", "red"))
        self.line(f"  expected: {error.expected}")
        self.line(f"  seen:     {error.seen}")


def _clip(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}..."


def narrator_for(*, as_json: bool) -> Narrator:
    """Return the narrator of a run: on stdout, or on stderr when stdout carries JSON."""
    return Narrator(sys.stderr if as_json else sys.stdout)
