"""What is printed where: data on stdout, progress and questions on stderr.

With ``--json`` stdout carries one JSON value, or one per line for streams, and nothing else.
Colour is used on a terminal without ``NO_COLOR`` only.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import click

from kelpie.app.text import clip, display_width, safe_line
from kelpie.cli import close_broken_pipe

_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_WIDTH_MIN: Final = 30
_WIDTH_UNSEEN: Final = 1_000


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


class Terminal:
    """Where one command prints; ``is_terminal`` says of a stream whether somebody looks at it."""

    def __init__(
        self,
        *,
        as_json: bool,
        environment: Mapping[str, str],
        is_terminal: Callable[[TextIO], bool] = _is_terminal,
    ) -> None:
        self.as_json = as_json
        self.interactive = is_terminal(sys.stdin) and is_terminal(sys.stderr)
        wanted = not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        self._shown = {1: is_terminal(sys.stdout), 2: is_terminal(sys.stderr)}
        self._colors = {stream: wanted and shown for stream, shown in self._shown.items()}

    @property
    def width(self) -> int:
        """The cells of a line of stdout; see `width_of`."""
        return self.width_of(1)

    def width_of(self, stream: int) -> int:
        """Return the cells of a line (1 stdout, 2 stderr); no bound where nobody looks at it."""
        columns = shutil.get_terminal_size().columns
        return max(columns, _WIDTH_MIN) if self._shown[stream] else _WIDTH_UNSEEN

    def style(self, text: str, name: str, *, stream: int = 1) -> str:
        """Return ``text`` in a style if that stream (1 stdout, 2 stderr) shows colours."""
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if self._colors[stream] else text

    def data(self, value: Any) -> None:
        """Print one JSON value on a line of stdout."""
        self.line(json.dumps(value))

    def line(self, text: str = "") -> None:
        """Print one line to stdout; the caller has made untrusted parts safe."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Print to stdout at once.

        Raises:
            click.exceptions.Exit: The reader of stdout has left.
        """
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise click.exceptions.Exit(close_broken_pipe()) from None

    def say(self, text: str = "") -> None:
        """Print one line to stderr; the caller has made untrusted parts safe."""
        print(text, file=sys.stderr, flush=True)

    def prompt(self, text: str) -> None:
        """Print a question to stderr and stay on its line."""
        print(text, end="", file=sys.stderr, flush=True)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows under headers, aligned; the last column gives way on a narrow terminal."""
        cells = [[safe_line(cell) for cell in row] for row in rows]
        widths = [
            max(display_width(row[index]) for row in [list(headers), *cells])
            for index in range(len(headers))
        ]
        if sum(widths[:-1]) + 2 * (len(widths) - 1) + 10 > self.width:
            self._blocks(headers, cells)
            return
        self.line(self.style(self._row(list(headers), widths), "bold"))
        for row in cells:
            self.line(self._row(row, widths))

    def fields(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Print names and values, aligned."""
        width = max((display_width(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            self.line(f"{self.style(name.ljust(width), 'bold')}  {safe_line(value)}")

    def _row(self, cells: list[str], widths: list[int]) -> str:
        padded = [
            cell + " " * (width - display_width(cell))
            for cell, width in zip(cells[:-1], widths[:-1], strict=True)
        ]
        used = sum(widths[:-1]) + 2 * len(padded)
        return "  ".join([*padded, clip(cells[-1], max(self.width - used, 1))])

    def _blocks(self, headers: Sequence[str], rows: list[list[str]]) -> None:
        """Print a table that does not fit: one field a line, an empty line between rows."""
        for number, row in enumerate(rows):
            if number:
                self.line()
            self.fields(list(zip(headers, row, strict=True)))


def local_time(at_ms: int) -> str:
    """Return wall milliseconds as local time, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
