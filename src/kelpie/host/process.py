"""Processes on the host: each a group of its own, dead with its parent, reaped by its context.

Starting happens on the loop's thread and never in an executor: ``PR_SET_PDEATHSIG`` follows the
*thread* that forked, and a pool's thread may end at any time.

The leader stays unreaped until its context is left. Its pid therefore names the group and nothing
else for as long as anybody may still kill it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import IO, Final, Literal, NamedTuple, Self

from kelpie.core.errors import UnavailableError
from kelpie.ports.process import OutputChunk, ProcessRequest

_READ_BYTES: Final = 64 * 1024
_BUFFERED_BYTES_MAX: Final = 512 * 1024  # output not yet taken; above it the process must wait
_REAP_TIMEOUT_SECONDS: Final = 5.0  # after SIGKILL only uninterruptible disk waits take longer

Stream = Literal["stdout", "stderr"]


class _Output:
    """Chunks of both streams in order of arrival, with back-pressure on the pipes."""

    def __init__(self) -> None:
        self._chunks: list[OutputChunk] = []
        self._buffered = 0
        self._open = 2
        self._ready = asyncio.Event()
        self._transports: list[asyncio.ReadTransport] = []

    def attach(self, transport: asyncio.ReadTransport) -> None:
        self._transports.append(transport)

    def put(self, chunk: OutputChunk) -> None:
        self._chunks.append(chunk)
        self._buffered += len(chunk.data)
        self._ready.set()
        if self._buffered > _BUFFERED_BYTES_MAX:
            for transport in self._transports:
                transport.pause_reading()

    def close_one(self) -> None:
        self._open -= 1
        self._ready.set()

    async def take(self) -> list[OutputChunk]:
        """Return everything that has arrived; empty once both streams closed."""
        while not self._chunks and self._open:
            self._ready.clear()
            await self._ready.wait()
        chunks, self._chunks, self._buffered = self._chunks, [], 0
        for transport in self._transports:
            if not transport.is_closing():
                transport.resume_reading()
        return chunks

    def close(self) -> None:
        for transport in self._transports:
            transport.close()


class _Chunks:
    """Iterates over an output. No generator: one that is left half-way would need closing."""

    def __init__(self, output: _Output) -> None:
        self._output = output
        self._taken: deque[OutputChunk] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputChunk:
        if not self._taken:
            self._taken.extend(await self._output.take())
        if not self._taken:
            raise StopAsyncIteration
        return self._taken.popleft()


class _Reader(asyncio.Protocol):
    """Moves one pipe's bytes into the shared output."""

    def __init__(self, stream: Stream, output: _Output) -> None:
        self._stream: Stream = stream
        self._output = output

    def data_received(self, data: bytes) -> None:
        self._output.put(OutputChunk(self._stream, data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio names it
        self._output.close_one()


class HostProcess:
    """Implements the running process of the process port."""

    def __init__(self, process: subprocess.Popen[bytes], exit_fd: int) -> None:
        self._process = process
        self._exit_fd = exit_fd
        self._output = _Output()
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._reaped = False
        self._loop.add_reader(exit_fd, self._note_exit)

    @property
    def pid(self) -> int:
        """The process id, which is its group's id too."""
        return self._process.pid

    def output(self) -> AsyncIterator[OutputChunk]:
        """Yield what the process prints until both streams close."""
        return _Chunks(self._output)

    async def wait(self) -> int:
        """Return the exit status; negative for the signal that ended it."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """Send ``SIGKILL`` to the whole process group; harmless when it has ended."""
        if not self._reaped:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _note_exit(self) -> None:
        # WNOWAIT: the leader stays a zombie, so that its pid cannot name another process yet.
        found = os.waitid(os.P_PIDFD, self._exit_fd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if found is None:
            return
        self._loop.remove_reader(self._exit_fd)
        status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        if not self._exited.done():
            self._exited.set_result(status)

    async def connect(self) -> None:
        """Start reading both pipes."""
        output = self._output
        assert self._process.stdout
        assert self._process.stderr
        pipes: tuple[tuple[Stream, IO[bytes]], ...] = (
            ("stdout", self._process.stdout),
            ("stderr", self._process.stderr),
        )
        for stream, pipe in pipes:
            reader = functools.partial(_Reader, stream, output)
            transport, _ = await self._loop.connect_read_pipe(reader, pipe)
            output.attach(transport)

    async def finish(self) -> None:
        """Kill the group, reap the leader and close every descriptor, whatever is cancelled."""
        self.kill()
        cancelled = await self._await_exit()
        self._output.close()
        if self._exited.done():
            self.kill()  # whatever the leader forked in its last moment; it is a zombie by now
            self._reaped = True
            self._process.wait()
        else:
            self._loop.remove_reader(self._exit_fd)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        os.close(self._exit_fd)
        if cancelled:
            raise asyncio.CancelledError

    async def _await_exit(self) -> bool:
        """Wait for the leader's end, bounded; return whether a cancellation arrived meanwhile."""
        deadline = self._loop.time() + _REAP_TIMEOUT_SECONDS
        cancelled = False
        while not self._exited.done() and self._loop.time() < deadline:
            try:
                await asyncio.wait([self._exited], timeout=deadline - self._loop.time())
            except asyncio.CancelledError:
                cancelled = True
        return cancelled


class HostProcesses:
    """Implements the process port with process groups, pidfds and parent-death signals."""

    @asynccontextmanager
    async def start(self, request: ProcessRequest) -> AsyncGenerator[HostProcess]:
        """Start ``request`` and yield it running; leaving kills its group and reaps it.

        Raises:
            UnavailableError: The program does not exist on this host, or another user was asked
                for without being root.
        """
        running = HostProcess(*_spawn(request))
        try:
            await running.connect()
            yield running
        finally:
            await running.finish()


class _Spawned(NamedTuple):
    process: subprocess.Popen[bytes]
    exit_fd: int


def _spawn(request: ProcessRequest) -> _Spawned:
    argv = _command(request)
    stdin = _input_file(request.stdin)
    try:
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=request.directory,
            env=dict(request.environment),
            pass_fds=request.pass_fds,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise UnavailableError(f"cannot start {request.argv[0]!r}: {error}") from error
    finally:
        os.close(stdin)
    try:
        return _Spawned(process, os.pidfd_open(process.pid))
    except OSError as error:
        process.kill()
        process.communicate()
        raise UnavailableError(f"cannot watch {request.argv[0]!r}: {error}") from error


def _input_file(stdin: bytes) -> int:
    """Return a descriptor to read ``stdin`` from: a file in memory, which nobody has to feed."""
    descriptor = os.memfd_create("stdin")
    with open(descriptor, "wb", buffering=0, closefd=False) as file:
        remaining = memoryview(stdin)
        while remaining:
            remaining = remaining[file.write(remaining) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _command(request: ProcessRequest) -> list[str]:
    search = request.environment.get("PATH", os.defpath)
    if shutil.which(request.argv[0], path=search) is None:
        raise UnavailableError(f"program {request.argv[0]!r} is not installed on this host")
    setpriv = shutil.which("setpriv", path=os.defpath)
    if setpriv is None:
        raise UnavailableError("setpriv is missing: run `apt-get install util-linux`")
    if request.user_id is None:
        identity: list[str] = []
    elif os.geteuid() == 0:
        group = request.user_id if request.group_id is None else request.group_id
        identity = [f"--reuid={request.user_id}", f"--regid={group}", "--clear-groups"]
    else:
        raise UnavailableError("only root can start a process as another user")
    # A small program sets the signal and the user, then becomes the process: code of ours between
    # fork and exec would copy this process's page tables and could meet a lock held by a thread.
    return [setpriv, "--pdeathsig", "KILL", *identity, "--", *request.argv]
