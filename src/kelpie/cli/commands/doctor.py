"""``kelpie doctor``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

import click

from kelpie.app.text import break_words, safe_line
from kelpie.cli import checks
from kelpie.cli.canary import check_gate
from kelpie.cli.checks import Check
from kelpie.cli.frame import Frame, framed, run_async

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}
_NAME_WIDTH: Final = 20


@click.command()
@framed(remote=False)
def doctor(frame: Frame) -> int:
    """Check the host, the store, the sandbox, the model, the gate.

    Everything is tried, not looked up. Exit status 1: a check failed.
    """
    found = run_async(_examine(frame))
    if frame.as_json:
        frame.terminal.data([check._asdict() for check in found])
    return 1 if any(check.status == "fail" for check in found) else 0


async def _examine(frame: Frame) -> list[Check]:
    found: list[Check] = []
    async for check in _checks(frame):
        found.append(check)
        if not frame.as_json:
            _print(frame, check)
    return found


async def _checks(frame: Frame) -> AsyncIterator[Check]:
    settings = frame.settings()
    world = frame.world
    yield checks.check_python()
    yield checks.check_settings(world, settings)
    yield checks.check_sqlite(settings)
    yield checks.check_disk(settings)
    yield await checks.check_store(world, settings)
    yield checks.check_port(world, settings)
    for check in await checks.check_sandbox(world, settings):
        yield check
    yield await checks.check_model(world, settings)
    yield await check_gate(world, settings)


def _print(frame: Frame, check: Check) -> None:
    terminal = frame.terminal
    status = terminal.style(check.status.ljust(4), _STYLES[check.status])
    indent = " " * 6
    lines = list(_lines(check, terminal.width - len(indent) - _NAME_WIDTH))
    terminal.line(f"{status}  {safe_line(check.name).ljust(_NAME_WIDTH)}{lines[0]}")
    for line in lines[1:]:
        terminal.line(f"{indent}{' ' * _NAME_WIDTH}{line}")


def _lines(check: Check, room: int) -> Iterator[str]:
    yield from break_words(safe_line(check.detail), max(room, 10))
    if check.next_step:
        yield from break_words(safe_line(f"next: {check.next_step}"), max(room, 10))
