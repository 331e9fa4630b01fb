"""The keyboard and Ctrl-C."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from kelpie.cli.errors import CommandError
from kelpie.cli.interrupts import Interrupts, WaitInterrupted
from kelpie.cli.keyboard import Keyboard


class Typed(NamedTuple):
    """A pipe: what is written to ``keys`` is read from ``stdin``."""

    stdin: TextIO
    keys: int


@pytest.fixture
def typed() -> Iterator[Typed]:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin:
        yield Typed(stdin, writer)


def test_lines_come_as_they_are_typed_and_the_end_is_none(typed: Typed) -> None:
    async def read() -> list[str | None]:
        keyboard = Keyboard(typed.stdin)
        os.write(typed.keys, "é one\ntwo\nhal".encode())
        lines = [await keyboard.line(), await keyboard.line()]
        os.write(typed.keys, b"f")
        os.close(typed.keys)
        return [*lines, await keyboard.line(), await keyboard.line()]

    assert asyncio.run(read()) == ["é one", "two", "half", None]


def test_the_loop_goes_on_while_a_line_is_waited_for(typed: Typed) -> None:
    async def read() -> str | None:
        async with asyncio.TaskGroup() as group:
            line = group.create_task(Keyboard(typed.stdin).line())
            await asyncio.sleep(0)
            os.write(typed.keys, b"later\n")
        os.close(typed.keys)
        return line.result()

    assert asyncio.run(read()) == "later"


def test_a_file_on_stdin_works_too(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\n")
    with (tmp_path / "lines").open() as stdin:

        async def read() -> list[str | None]:
            keyboard = Keyboard(stdin)
            return [await keyboard.line(), await keyboard.line()]

        assert asyncio.run(read()) == ["one", None]


def test_the_first_ctrl_c_ends_the_wait_and_the_second_leaves() -> None:
    async def wait() -> list[bool]:
        interrupts = Interrupts()
        seen = []
        for _ in range(2):
            asyncio.get_running_loop().call_soon(interrupts.press)
            with pytest.raises(WaitInterrupted):
                await interrupts.guard(asyncio.Event().wait())
            seen.append(interrupts.leaving)
        return seen

    assert asyncio.run(wait()) == [False, True]


def test_something_finished_in_between_starts_the_count_again() -> None:
    async def wait() -> bool:
        interrupts = Interrupts()
        interrupts.press()
        await interrupts.guard(asyncio.sleep(0))
        interrupts.press()
        return interrupts.leaving

    assert asyncio.run(wait()) is False


def test_errors_come_out_of_a_guard_bare() -> None:
    async def fail() -> None:
        raise CommandError("busy", "later")

    with pytest.raises(CommandError, match="later"):
        asyncio.run(Interrupts().guard(fail()))


def test_ctrl_c_on_the_keyboard_is_a_press() -> None:
    async def wait() -> bool:
        interrupts = Interrupts()
        async with interrupts.installed():
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), 2)
            with pytest.raises(WaitInterrupted):
                await interrupts.guard(asyncio.Event().wait())
        return interrupts.leaving

    assert asyncio.run(wait()) is False
