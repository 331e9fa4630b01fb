"""Lines from stdin while a loop runs: an answer can be waited for without stopping the rest."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final, TextIO

_CHUNK_BYTES: Final = 4_096


class Keyboard:
    """Reads ``stdin``, the process's own by default, line by line: a terminal, a pipe or a file."""

    def __init__(self, stdin: TextIO | None = None) -> None:
        self._stdin = stdin or sys.stdin
        self._buffer = b""
        self._ended = False
        try:
            self._descriptor: int | None = self._stdin.fileno()
        except (OSError, ValueError):
            self._descriptor = None

    async def line(self) -> str | None:
        """Return the next line without its end, None at the end of input."""
        if self._descriptor is None:
            return self._stdin.readline().rstrip("\n") or None
        while b"\n" not in self._buffer and not self._ended:
            await self._readable(self._descriptor)
            chunk = os.read(self._descriptor, _CHUNK_BYTES)
            self._ended = not chunk
            self._buffer += chunk
        if not self._buffer:
            self._ended = False  # a terminal goes on after Ctrl-D
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace")

    async def _readable(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(descriptor, ready.set)
        except PermissionError:
            return  # a regular file: reading it never waits
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)
