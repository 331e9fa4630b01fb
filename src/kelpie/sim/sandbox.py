"""A simulated sandbox: programs are functions over a view of the workspace.

The workspace and the blobs are real files; what a program writes is reported as changes and never
reaches the workspace by itself, as in every tier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from kelpie.core.errors import InputError, SandboxError
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.protocol import (
    CommandRequest,
    CommandResult,
    FileChange,
    OutputSink,
    TierReport,
)
from kelpie.sandbox.workspace import Workspace
from kelpie.sim.faults.plan import Faults, NoFaults

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
        assert self.output.endswith(text), "what is printed is kept"
        if self._sink is not None:
            await self._sink("stdout", text)


Program = Callable[[SimulatedCommand], Awaitable[int]]
"""Runs one command and returns its exit status."""


async def _hang(command: SimulatedCommand) -> int:
    del command
    await asyncio.Event().wait()
    return 0


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

    def __init__(
        self,
        programs: Mapping[str, Program],
        blobs: Blobs,
        started: list[str],
        faults: Faults | None = None,
    ) -> None:
        self._faults = faults or NoFaults()
        self._programs = {"cat": _cat, **programs}
        self._blobs = blobs
        self.started = started

    @property
    def tier(self) -> str:
        """The tier's name."""
        return TIER

    async def run(self, request: CommandRequest, sink: OutputSink | None = None) -> CommandResult:
        """Run one simulated command to its end or to its time bound.

        Raises:
            SandboxError: The sandbox could not be set up, died, or cannot be read.
        """
        assert request.argv, "a command names a program"
        assert request.workspace.is_absolute(), "a command runs in a place of its own"
        await asyncio.sleep(START_S)
        if self._faults.fires("sandbox.boot_fail"):
            raise SandboxError("the jail could not be set up: simulated")
        self.started.append(" ".join(request.argv))
        command = SimulatedCommand(request, sink)
        program = self._programs.get(request.argv[0])
        status, stopped_by = 127, ""
        if self._faults.fires("sandbox.exec_fail"):
            program = None
        if self._faults.fires("sandbox.exec_timeout"):
            program = _hang
        if program is not None:
            try:
                async with asyncio.timeout(request.bounds.timeout_ms / 1000):
                    status = await program(command)
            except TimeoutError:
                status, stopped_by = -9, "time"
        if self._faults.fires("sandbox.crash"):
            raise SandboxError("the sandbox died under the command: simulated")
        if self._faults.fires("sandbox.output_flood"):
            status, stopped_by = -9, "output"
        assert status >= 0 or stopped_by, "a simulated program ends with a status of its own"
        changes = self._harvest(request, command) if not stopped_by else ()
        return CommandResult(
            exit_status=status,
            stdout=command.output,
            stderr=b"",
            output_cut=stopped_by == "output",
            stopped_by=stopped_by,
            duration_ms=10,
            changes=changes,
        )

    def _harvest(
        self, request: CommandRequest, command: SimulatedCommand
    ) -> tuple[FileChange, ...]:
        if request.access == "read":
            return ()
        if self._faults.fires("sandbox.harvest_fail"):
            raise SandboxError("the command's changes could not be read: simulated")
        return self._changes(request.workspace, command)

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
