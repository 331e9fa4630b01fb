"""Processes as a port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol


class OutputChunk(NamedTuple):
    """A piece of what a process printed, in order of arrival within its stream."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRequest:
    """A program to start, without a shell, as leader of a process group of its own.

    The process receives ``SIGKILL`` when its parent dies. ``environment`` is the whole of its
    environment. File descriptors in ``pass_fds`` are inherited. With ``user_id`` set (the parent
    must be root) the process runs as that uid and gid, without supplementary groups.
    """

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    directory: str = "/"
    stdin: bytes = b""
    pass_fds: tuple[int, ...] = ()
    user_id: int | None = None
    group_id: int | None = None


class RunningProcess(Protocol):
    """A started process; leaving its context kills the whole group and reaps it."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    def output(self) -> AsyncIterator[OutputChunk]:
        """Yield what the process prints until both streams close."""
        ...

    async def wait(self) -> int:
        """Return the exit status; negative for the signal that ended it."""
        ...

    def kill(self) -> None:
        """Send ``SIGKILL`` to the whole process group; harmless when it has ended."""
        ...


class Processes(Protocol):
    """The world's way to start programs."""

    def start(self, request: ProcessRequest) -> AbstractAsyncContextManager[RunningProcess]:
        """Start ``request`` and yield it running.

        Raises:
            UnavailableError: The program does not exist on this host.
        """
        ...
