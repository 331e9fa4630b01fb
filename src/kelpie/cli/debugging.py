"""Stepping over a run from a terminal or a pipe: commands as lines, answers as lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from kelpie.app.text import safe_line
from kelpie.cli.frame import Frame
from kelpie.sim.debug import Debugger, drive


def step_over(frame: Frame, make: Callable[[Callable[[str], None]], Debugger]) -> None:
    """Let the person at stdin step over a run; ``make`` gets where the answers go."""
    debugger = make(frame.terminal.data if frame.as_json else _line_printer(frame))
    for _ in drive(debugger, _lines_of(frame, debugger)):
        pass


def say_lines(frame: Frame, lines: Iterable[str]) -> None:
    """Print lines whose text is untrusted."""
    for line in lines:
        frame.terminal.line(safe_line(line))


def _line_printer(frame: Frame) -> Callable[[str], None]:
    def say(text: str) -> None:
        say_lines(frame, text.split("\n"))

    return say


def _lines_of(frame: Frame, debugger: Debugger) -> Iterator[str]:
    """Yield what stdin says, line by line, with a prompt on a terminal."""
    while True:
        if frame.terminal.interactive:
            frame.terminal.prompt(debugger.prompt)
        line = sys.stdin.readline()
        if not line:
            return
        yield line
