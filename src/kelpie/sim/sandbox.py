"""A simulated sandbox: programs are functions over a view of the workspace.

The workspace and the blobs are real files; what a program writes is reported as changes and never
reaches the workspace by itself, as in every tier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from kelpie.core.errors import InputError
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.protocol import (
    CommandRequest,
    CommandResult,
    FileChange,
    OutputSink,
    TierReport,
)
from kelpie.sandbox.workspace import Workspace

TIER: Final = "simulated"
START_S: Final = 0.01


class SimulatedCommand:
    """One running simulated command.

    Attributes:
        argv: The program and its arguments.
        written: What it wrote, by path.
    """

    def __init__(self, request: CommandRequest, sink: OutputSink | None) -> None:
        self.argv = request.argv
        self.written: dict[str, bytes] = {}
        self.output = b""
        self._workspace = Workspace(request.workspace)
        self._sink = sink

    def read(self, path: str) -> bytes:
        """Return a file's content as the command sees it.

        Raises:
            InputError: There is no such file.
        """
        return self.written.get(path) or self._workspace.read(path)

    def write(self, path: str, content: bytes) -> None:
        """Write a file in the scratch layer."""
        assert not path.startswith("/"), "a path is relative to the workspace"
        assert ".." not in path.split("/"), "a path stays in the workspace"
        self.written[path] = content

    async def print(self, text: bytes) -> None:
        """Print to standard output."""
        self.output += text
        if self._sink is not None:
            await self._sink("stdout", text)


Program = Callable[[SimulatedCommand], Awaitable[int]]
"""Runs one command and returns its exit status."""


async def _cat(command: SimulatedCommand) -> int:
    try:
        await command.print(command.read(command.argv[-1].removeprefix("./")))
    except InputError:
        return 1
    return 0


class SimulatedSandbox:
    """Implements the sandbox protocol.

    Attributes:
        started: The argv of every command that began, across restarts of the product.
    """

    def __init__(self, programs: Mapping[str, Program], blobs: Blobs, started: list[str]) -> None:
        self._programs = {"cat": _cat, **programs}
        self._blobs = blobs
        self.started = started

    @property
    def tier(self) -> str:
        """The tier's name."""
        return TIER

    async def run(self, request: CommandRequest, sink: OutputSink | None = None) -> CommandResult:
        """Run one simulated command to its end or to its time bound."""
        assert request.argv, "a command names a program"
        assert request.workspace.is_absolute(), "a command runs in a place of its own"
        await asyncio.sleep(START_S)
        self.started.append(" ".join(request.argv))
        command = SimulatedCommand(request, sink)
        program = self._programs.get(request.argv[0])
        status, stopped_by = 127, ""
        if program is not None:
            try:
                async with asyncio.timeout(request.bounds.timeout_ms / 1000):
                    status = await program(command)
            except TimeoutError:
                status, stopped_by = -9, "timeout"
        assert status >= 0 or stopped_by, "a simulated program ends with a status of its own"
        changes = () if request.access == "read" else self._changes(request.workspace, command)
        return CommandResult(
            exit_status=status,
            stdout=command.output,
            stderr=b"",
            output_cut=False,
            stopped_by=stopped_by,
            duration_ms=10,
            changes=changes,
        )

    def _changes(self, root: Path, command: SimulatedCommand) -> tuple[FileChange, ...]:
        workspace = Workspace(root)
        changes: list[FileChange] = []
        for path, content in sorted(command.written.items()):
            state = workspace.state(path)
            after = self._blobs.put_bytes(content)
            if after != state.digest:
                mode = state.mode if state.kind == "file" else 0o644
                change = FileChange(
                    path=path, kind="file", before=state.digest, after=after, mode=mode
                )
                changes.append(change)
        assert all(change.before != change.after for change in changes), "a change changes nothing"
        return tuple(changes)

    async def probe(self) -> TierReport:
        """Say that it works."""
        return TierReport(TIER, works=True, detail="simulated")

    async def reap_orphans(self) -> int:
        """Nothing outlives a simulated process."""
        return 0
