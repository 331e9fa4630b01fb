"""The bubblewrap tier: a namespace jail around one command.

Every namespace, a system-call filter, no network, the workspace and a read-only ``/usr``. As root
the jail runs as unprivileged host ids; as an ordinary user it runs as that user. Bounds are held
by the kernel where it can (control groups, rlimits) and by a watcher where it cannot.

Never runs a command outside the jail: what is missing raises `UnavailableError`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.core.errors import InvalidFieldError, KelpieError, SandboxError, UnavailableError
from kelpie.core.limits import SANDBOX_START_TIMEOUT_MS
from kelpie.core.quoting import quote_text
from kelpie.ports.clock import Clock
from kelpie.ports.process import Processes, ProcessRequest, RunningProcess
from kelpie.ports.rng import Rng
from kelpie.sandbox import launcher
from kelpie.sandbox.arguments import FIRST_ID, check_request
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.blocking import run_to_end
from kelpie.sandbox.cgroups import (
    Controllers,
    find_controllers,
    find_leftovers,
    remove_leftover,
)
from kelpie.sandbox.jail import Jail
from kelpie.sandbox.orphans import MARK_VARIABLE, kill_marked, kill_members, make_mark
from kelpie.sandbox.output import Collector
from kelpie.sandbox.overlay import Harvest, harvest_layer
from kelpie.sandbox.protocol import (
    Bounds,
    CommandRequest,
    CommandResult,
    OutputSink,
    TierReport,
)
from kelpie.sandbox.scratch import list_scratches, remove_scratch
from kelpie.sandbox.seccomp import build_filter
from kelpie.sandbox.workspace import Workspace

TIER: Final = "bubblewrap"
_SEARCH_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_INSTALL: Final = "bubblewrap is missing: run `apt-get install bubblewrap`"
_WATCH_INTERVAL_SECONDS: Final = 0.05
_SCRATCH_EVERY_TICKS: Final = 5
_NAME_BYTES: Final = 8
_REAP_TRIES: Final = 250
_REAP_PAUSE_SECONDS: Final = 0.02
_SIGNAL_BASE: Final = 128  # how a shell, and bubblewrap, report a signal
_SIGNALS_MAX: Final = 64
_NOT_STARTED: Final = b"bwrap: execvp "  # the jail stood; its program does not exist or run
_COMMAND_NOT_FOUND: Final = 127
_SIGKILL: Final = 9
_SIGXFSZ: Final = 25
_NO_CHANGES: Final = Harvest((), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    """What this host offers, found once."""

    bwrap: str
    seccomp: bytes
    controllers: Controllers


class _Ending(NamedTuple):
    exit_status: int
    output: Collector
    duration_ms: int


class Bubblewrap:
    """Implements `Sandbox` with bubblewrap.

    Args:
        processes: Starts the launcher; must be the host's own.
        blobs: Receives the content that commands wrote.
        scratch_root: A directory of this instance alone, on a disk with room for scratch layers.
            Its path marks the jails, so that `reap_orphans` finds those of earlier sessions.
        search_path: Where ``bwrap`` is looked for.
    """

    def __init__(
        self,
        *,
        processes: Processes,
        blobs: Blobs,
        clock: Clock,
        rng: Rng,
        scratch_root: Path,
        search_path: str = _SEARCH_PATH,
    ) -> None:
        self._processes = processes
        self._blobs = blobs
        self._clock = clock
        self._rng = rng
        self._scratch_root = scratch_root
        self._search_path = search_path
        self._mark = make_mark(scratch_root)
        self._host: _Host | None = None

    @property
    def tier(self) -> str:
        """The tier's name."""
        return TIER

    async def run(self, request: CommandRequest, sink: OutputSink | None = None) -> CommandResult:
        """Run one command to its end; on cancellation nothing of it survives.

        Raises:
            UnavailableError: Bubblewrap is missing or this architecture has no filter.
            SandboxError: The jail could not be set up; the message carries the reason.
            InvalidFieldError: The request is malformed.
            LimitExceededError: The request, or what the command changed, is too large.
            NotFoundError: The workspace does not exist.
        """
        check_request(request)
        if Workspace(request.workspace).state(request.directory).kind != "directory":
            problem = f"{quote_text(request.directory)} is no directory of the workspace"
            raise InvalidFieldError("directory", problem)
        host = self._find_host()
        jail = Jail(
            request,
            name=f"{self._mark}-{self._rng.bytes(_NAME_BYTES).hex()}",
            bwrap=host.bwrap,
            scratch_root=self._scratch_root,
            controllers=host.controllers,
            clock=self._clock,
        )
        try:
            ending = await self._execute(jail, request, host, sink)
            harvest = await self._harvest(jail, request)
        finally:
            await jail.tear_down()
        return CommandResult(
            exit_status=ending.exit_status,
            stdout=ending.output.stdout,
            stderr=ending.output.stderr,
            output_cut=ending.output.is_cut,
            stopped_by=jail.stopped_by,
            duration_ms=ending.duration_ms,
            changes=harvest.changes,
            left_out=harvest.left_out,
        )

    async def probe(self) -> TierReport:
        """Run ``true`` on an overlay under a deadline and say whether the tier works here."""
        workspace = self._scratch_root / "probe"
        request = CommandRequest(
            argv=("/bin/true",),
            workspace=workspace,
            access="overlay",
            bounds=Bounds(timeout_ms=SANDBOX_START_TIMEOUT_MS),
        )
        try:
            workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
            result = await self.run(request)
        except (KelpieError, OSError) as error:
            return TierReport(TIER, works=False, detail=str(error))
        finally:
            with suppress(OSError):
                workspace.rmdir()
        if result.exit_status or result.stopped_by:
            reason = result.stopped_by or f"exit status {result.exit_status}"
            return TierReport(TIER, works=False, detail=f"/bin/true ended with: {reason}")
        return TierReport(TIER, works=True, detail=self._describe())

    async def reap_orphans(self) -> int:
        """Kill every jail of an earlier session with this scratch root; return how many processes.

        Call it once, before the first `run` and before interrupted effects are resolved: it does
        not spare jails of this session. Their scratch layers and control groups are removed.

        Raises:
            SandboxError: One of them would not die.
        """
        controllers = find_controllers(self._mark)
        killed = 0
        for _ in range(_REAP_TRIES):
            found = kill_marked(self._mark)
            leftovers = find_leftovers(controllers, self._mark)
            for path, members in leftovers.items():
                kill_members(members, path / "cgroup.procs")
                remove_leftover(path)
            killed += found
            if not found and not leftovers:
                break
            await self._clock.sleep(_REAP_PAUSE_SECONDS)
        else:
            raise SandboxError("a jail of an earlier session does not die; restart the host")
        for path in list_scratches(self._scratch_root):
            await run_to_end(remove_scratch, path)
        return killed

    def _find_host(self) -> _Host:
        bwrap = shutil.which("bwrap", path=self._search_path)
        if bwrap is None:
            raise UnavailableError(_INSTALL, package="bubblewrap")
        if self._host is None or self._host.bwrap != bwrap:
            self._host = _Host(
                bwrap=bwrap,
                seccomp=build_filter(os.uname().machine),
                controllers=find_controllers(self._mark),
            )
        return self._host

    def _describe(self) -> str:
        who = f"host ids from {FIRST_ID}" if os.geteuid() == 0 else f"host id {os.getuid()}"
        bounds = self._find_host().controllers.describe()
        return f"runs as {who}; {bounds}; writes on an overlay; no network"

    async def _execute(
        self, jail: Jail, request: CommandRequest, host: _Host, sink: OutputSink | None
    ) -> _Ending:
        order, descriptors = jail.set_up(host.seccomp)
        started = self._clock.boot_ns()
        collector = Collector(request.bounds.output_bytes, sink)
        program = (sys.executable, "-I", "-S", str(Path(launcher.__file__)))
        launch = ProcessRequest(
            argv=(*program, str(order), MARK_VARIABLE, jail.name),
            stdin=request.stdin,
            pass_fds=descriptors,
        )
        async with self._processes.start(launch) as process:
            jail.note_started()
            try:
                await self._follow(jail, process, request.bounds, collector, started)
                status = await process.wait()
            finally:
                jail.kill(process)
        duration_ms = (self._clock.boot_ns() - started) // 1_000_000
        jail.stopped_by = jail.stopped_by or jail.exceeded_at_end()
        exit_status = _exit_status(jail, request, status, collector)
        return _Ending(exit_status, collector, duration_ms)

    async def _follow(
        self,
        jail: Jail,
        process: RunningProcess,
        bounds: Bounds,
        collector: Collector,
        started: int,
    ) -> None:
        """Take the output until it ends, while the bounds are watched."""
        deadline = started + bounds.timeout_ms * 1_000_000

        async def take() -> None:
            async for chunk in process.output():
                await collector.take(chunk)
                if collector.is_cut and not jail.stopped_by:
                    jail.stop("output", process)
            await process.wait()

        await _run_beside(take, lambda: self._watch(jail, process, deadline))

    async def _watch(self, jail: Jail, process: RunningProcess, deadline: int) -> None:
        """Stop the jail at its deadline or at the first bound it exceeds."""
        tick = 0
        while not jail.stopped_by:
            left = (deadline - self._clock.boot_ns()) / 1_000_000_000
            if left <= 0:
                jail.stop("time", process)
                return
            await self._clock.sleep(min(left, _WATCH_INTERVAL_SECONDS))
            tick += 1
            reason = jail.exceeded(process.pid)
            if not reason and tick % _SCRATCH_EVERY_TICKS == 0 and await jail.exceeded_scratch():
                reason = "scratch"
            if reason:
                jail.stop(reason, process)

    async def _harvest(self, jail: Jail, request: CommandRequest) -> Harvest:
        if jail.scratch is None or jail.stopped_by:  # half of a change set is none
            return _NO_CHANGES
        upper = jail.scratch.upper
        try:
            return await run_to_end(harvest_layer, request.workspace, upper, self._blobs)
        except OSError as error:
            raise SandboxError(f"the command's changes could not be read: {error}") from error


async def _run_beside(
    work: Callable[[], Awaitable[None]], companion: Callable[[], Awaitable[None]]
) -> None:
    """Run ``work`` to its end with ``companion`` beside it, which ends with it."""

    async def accompany() -> None:
        await companion()

    try:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(accompany())
            try:
                await work()
            finally:
                beside.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _exit_status(
    jail: Jail, request: CommandRequest, launcher_status: int, output: Collector
) -> int:
    """Return the command's exit status; negative for a signal, 127 for a program not found.

    Raises:
        SandboxError: The command never started.
    """
    code = jail.exit_code()
    if code is None and jail.stopped_by:
        return -_SIGKILL
    if code is None and output.stderr.startswith(_NOT_STARTED):
        return _COMMAND_NOT_FOUND
    if code is None:
        reason = output.stderr.decode(errors="replace").strip()[:1_000]
        message = f"the jail could not be set up: {reason or f'exit status {launcher_status}'}"
        raise SandboxError(message, exit_status=launcher_status)
    if _SIGNAL_BASE < code <= _SIGNAL_BASE + _SIGNALS_MAX:
        code = _SIGNAL_BASE - code
    if code == -_SIGXFSZ and request.access == "overlay":
        jail.stopped_by = jail.stopped_by or "scratch"
    return code
