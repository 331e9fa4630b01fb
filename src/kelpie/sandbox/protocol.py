"""The sandbox contract, split by capability.

Every tier passes ``tests/contract/sandbox``: nothing outside the mounts is visible, nothing is
reachable over a network, limits hold for root and for users, nothing survives the context.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from kelpie.core import limits

Access = Literal["read", "overlay"]
"""``read``: the workspace is mounted read-only. ``overlay``: writes land in a scratch layer that
is reported as changes and never reaches the workspace by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one command may use; each is enforced, each excess ends the command with a reason."""

    memory_bytes: int = limits.SANDBOX_MEMORY_BYTES
    processes: int = limits.SANDBOX_PROCESSES_MAX
    output_bytes: int = limits.SANDBOX_OUTPUT_BYTES_MAX
    timeout_ms: int = limits.SANDBOX_TIMEOUT_MS
    scratch_bytes: int = limits.SANDBOX_SCRATCH_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """One command in a sandbox. No shell is involved unless ``argv[0]`` is one.

    The workspace appears as ``/workspace``; ``directory`` is relative to it.
    """

    argv: tuple[str, ...]
    workspace: Path
    access: Access
    directory: str = "."
    stdin: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=Bounds)


class FileState(NamedTuple):
    """A path's content as seen by a digest: ``digest`` is empty for an absent path.

    ``kind`` tells files, directories and links apart; a link's digest covers its target's text.
    """

    kind: Literal["absent", "file", "directory", "link", "other"]
    digest: str
    mode: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One path of a change set, relative to the workspace root, ``/``-separated.

    ``before`` and ``after`` are digests of content (empty: absent); ``blob`` names the new
    content in the blob store and equals ``after`` for files. ``mode`` is the permission bits that
    the path will have.
    """

    path: str
    kind: Literal["file", "directory", "link"]
    before: str
    after: str
    mode: int


class CommandResult(NamedTuple):
    """What a command came to.

    ``exit_status`` is negative for a signal. ``stopped_by`` names the bound that ended it, empty
    otherwise; what a stopped command changed is discarded. ``changes`` is the command's scratch
    layer against the workspace (access ``overlay``), already stored as blobs; ``left_out`` names,
    escaped for people, what the command left there that no change can carry (sockets, pipes, names
    that are not UTF-8).
    """

    exit_status: int
    stdout: bytes
    stderr: bytes
    output_cut: bool
    stopped_by: str
    duration_ms: int
    changes: tuple[FileChange, ...]
    left_out: tuple[str, ...] = ()


class TierReport(NamedTuple):
    """Whether a tier really starts on this host, and if not, what to install."""

    tier: str
    works: bool
    detail: str


OutputSink = Callable[[str, bytes], Awaitable[None]]
"""``await sink("stdout" | "stderr", data)`` as the command prints."""


class Sandbox(Protocol):
    """One tier on this host."""

    @property
    def tier(self) -> str:
        """The tier's name."""
        ...

    async def run(self, request: CommandRequest, sink: OutputSink | None = None) -> CommandResult:
        """Run one command to its end; on cancellation nothing of it survives.

        Raises:
            UnavailableError: The tier does not work on this host; the message says why.
            SandboxError: The sandbox could not be set up.
        """
        ...

    async def probe(self) -> TierReport:
        """Start a trivial command under a deadline and say whether the tier works."""
        ...

    async def reap_orphans(self) -> int:
        """End what an earlier session left running, and return how many processes that were.

        Call it once, before the first `run`: it does not spare this session's commands.

        Raises:
            SandboxError: Something would not end.
        """
        ...
