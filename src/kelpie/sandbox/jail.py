"""Everything one command's jail owns on the host, from set-up to the last trace removed.

Invariant: after `Jail.tear_down` no process of the jail lives, no descriptor is open, and neither
its control groups nor its scratch directory exist.
"""

from __future__ import annotations

import asyncio
import json
import marshal
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from kelpie.core.errors import SandboxError
from kelpie.ports.clock import Clock
from kelpie.ports.process import RunningProcess
from kelpie.sandbox.arguments import (
    FIRST_ID,
    Descriptors,
    make_launch,
    make_options,
    user_files,
)
from kelpie.sandbox.blocking import run_to_end
from kelpie.sandbox.cgroups import Controllers, Group
from kelpie.sandbox.orphans import open_marked
from kelpie.sandbox.protocol import CommandRequest
from kelpie.sandbox.scratch import Scratch, has_excess, make_scratch, remove_scratch
from kelpie.sandbox.usage import find_excess

_DEATH_TIMEOUT_SECONDS: Final = 5.0  # a killed process that takes longer hangs in the kernel
_REMOVAL_TRIES: Final = 500
_REMOVAL_PAUSE_SECONDS: Final = 0.01
_STATUS_BYTES_MAX: Final = 16 * 1024


class Jail:
    """The descriptors, control groups, scratch and fate of one command.

    Args:
        name: ``<mark>-<random>``; stands on the command line, the groups and the scratch.
    """

    def __init__(
        self,
        request: CommandRequest,
        *,
        name: str,
        bwrap: str,
        scratch_root: Path,
        controllers: Controllers,
        clock: Clock,
    ) -> None:
        self.stopped_by = ""
        self.scratch: Scratch | None = None
        self._request = request
        self.name = name
        self._bwrap = bwrap
        self._scratch_root = scratch_root
        self._controllers = controllers
        self._group = Group(controllers, name)
        self._clock = clock
        self._is_root = os.geteuid() == 0
        self._open: set[int] = set()
        self._status_pipe = -1
        self._status = bytearray()
        self._first: int | None = None

    def set_up(self, seccomp: bytes) -> tuple[int, tuple[int, ...]]:
        """Make groups, scratch and descriptors; return the order's descriptor and all to pass on.

        Raises:
            SandboxError: The host refused.
        """
        try:
            self._group.create(self._request.bounds)
            if self._request.access == "overlay":
                self.scratch = make_scratch(
                    self._scratch_root,
                    self.name,
                    self._request.workspace,
                    owner=FIRST_ID if self._is_root else 0,
                )
            return self._open_descriptors(seccomp)
        except OSError as error:
            raise SandboxError(f"the jail could not be set up: {error}") from error

    def _open_descriptors(self, seccomp: bytes) -> tuple[int, tuple[int, ...]]:
        self._status_pipe, status_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._open |= {self._status_pipe, status_write}
        users, groups = user_files()
        options = self._memory_file()
        descriptors = Descriptors(
            options=options,
            seccomp=self._memory_file(seccomp),
            users=self._memory_file(users),
            groups=self._memory_file(groups),
            status=status_write,
        )
        text = make_options(self._request, is_root=self._is_root, descriptors=descriptors)
        _fill(options, text)
        order = self._memory_file(marshal.dumps(self._make_order(descriptors)))
        return order, tuple(sorted(self._open - {self._status_pipe}))

    def _make_order(self, descriptors: Descriptors) -> dict[str, Any]:
        return make_launch(
            self._request,
            bwrap=self._bwrap,
            mark=self.name,
            scratch=self.scratch.path if self.scratch else None,
            is_root=self._is_root,
            parent=os.getpid(),
            controllers=self._controllers,
            process_files=self._group.process_files,
            descriptors=descriptors,
        )

    def _memory_file(self, content: bytes = b"") -> int:
        descriptor = os.memfd_create("jail")
        self._open.add(descriptor)
        _fill(descriptor, content)
        return descriptor

    def note_started(self) -> None:
        """Close what only the jail needs and listen for its first process."""
        for descriptor in self._open - {self._status_pipe}:
            self._close(descriptor)
        asyncio.get_running_loop().add_reader(self._status_pipe, self._read_status)

    def stop(self, reason: str, process: RunningProcess) -> None:
        """Kill everything in the jail because of ``reason``; the first reason stays."""
        self.stopped_by = self.stopped_by or reason
        self.kill(process)

    def kill(self, process: RunningProcess) -> None:
        """Kill everything in the jail; harmless when it is dead."""
        self._read_status()
        if self._first is not None:
            # The first process of its pid namespace: the kernel takes all others with it.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
        process.kill()

    def exceeded(self, process_id: int) -> str:
        """Return the bound on memory or processes that the jail has run into, or empty."""
        by_group = self._group.exceeded()
        no_memory, no_pids = self._controllers.memory is None, self._controllers.pids is None
        if by_group or not (no_memory or no_pids):
            return by_group
        bounds = self._request.bounds
        return find_excess(process_id, bounds, memory=no_memory, processes=no_pids)

    async def exceeded_scratch(self) -> bool:
        """Return whether the scratch layer holds more than it may."""
        if self.scratch is None:
            return False
        limit = self._request.bounds.scratch_bytes
        return await asyncio.to_thread(has_excess, self.scratch.path, limit)

    def exceeded_at_end(self) -> str:
        """Return the bound that the kernel enforced without anybody's help, or empty."""
        return self._group.exceeded()

    def exit_code(self) -> int | None:
        """Return what the command exited with, None if it never started or was killed."""
        self._read_status()
        code = _status_value(self._status, "exit-code")
        return code if isinstance(code, int) else None

    def _read_status(self) -> None:
        if self._status_pipe not in self._open:
            return
        try:
            data = os.read(self._status_pipe, _STATUS_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._status_pipe)
            return
        self._status += data
        child = _status_value(self._status, "first-pid")
        if self._first is None and isinstance(child, int):
            self._first = open_marked(child, self.name)

    async def tear_down(self) -> None:
        """Wait for the death of the whole jail and remove every trace, whatever is cancelled.

        Raises:
            SandboxError: Something of it could not be killed or removed.
            CancelledError: The caller was cancelled meanwhile.
        """
        dead, cancelled = await self._await_death()
        self._close_all()
        removed = self._group.remove()
        for _ in range(_REMOVAL_TRIES):
            if removed:
                break
            cancelled |= await _pause(self._clock)
            removed = self._group.remove()
        if not dead or not removed:
            raise SandboxError(f"jail {self.name} did not die within {_DEATH_TIMEOUT_SECONDS} s")
        if self.scratch is not None:
            try:
                await run_to_end(remove_scratch, self.scratch.path)
            except OSError as error:
                raise SandboxError(f"scratch of a jail could not be removed: {error}") from error
        if cancelled:
            raise asyncio.CancelledError

    async def _await_death(self) -> tuple[bool, bool]:
        """Return whether the first process is dead and whether a cancellation arrived."""
        if self._status_pipe >= 0:
            self._read_status()
        if self._first is None:
            return True, False
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._first, _settle, gone)
        cancelled = False
        until = loop.time() + _DEATH_TIMEOUT_SECONDS
        while not gone.done() and loop.time() < until:
            try:
                await asyncio.wait([gone], timeout=until - loop.time())
            except asyncio.CancelledError:
                cancelled = True
        loop.remove_reader(self._first)
        return gone.done(), cancelled

    def _close_all(self) -> None:
        if self._status_pipe in self._open:
            asyncio.get_running_loop().remove_reader(self._status_pipe)
        for descriptor in tuple(self._open):
            self._close(descriptor)
        if self._first is not None:
            os.close(self._first)
            self._first = None

    def _close(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        os.close(descriptor)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _pause(clock: Clock) -> bool:
    """Let the kernel finish; return whether the wait was cancelled."""
    try:
        await clock.sleep(_REMOVAL_PAUSE_SECONDS)
    except asyncio.CancelledError:
        return True
    return False


def _fill(descriptor: int, content: bytes) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)


def _status_value(status: bytes | bytearray, name: str) -> object:
    """Return a field of bubblewrap's status, a sequence of JSON objects of any layout."""
    decoder = json.JSONDecoder()
    text = status.decode(errors="replace").lstrip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            return None  # not complete yet
        fields: dict[str, object] = value
        if name in fields:
            return fields[name]
        text = text[end:].lstrip()
    return None
