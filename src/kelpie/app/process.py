"""The server as a process: sockets, signals, and the order of starting and stopping.

Stopping closes the gate first: from that moment new work is refused, what runs is finished or left
to the next start, and only then do the sockets close.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from kelpie import __version__
from kelpie.app.actor_file import load_actor_classes
from kelpie.app.opened import open_app
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import ConfigError, KelpieError
from kelpie.host.heap import short_pauses
from kelpie.server.serve import Listening, serve
from kelpie.settings import Settings

STORE_LOOK_S: Final = 1.0
LEFT_STATUS: Final = 75
SOCKET_NAME: Final = "kelpie.sock"
TEMPORARY: Final = Path("/tmp")  # noqa: S108  short by need; what is made there is private
SOCKET_PATH_BYTES_MAX: Final = 107  # what a Unix socket's address holds on Linux


def socket_path(settings: Settings, *, temporary: Path = TEMPORARY) -> Path:
    """Return where the holder of the store listens: beside the store, if that name is short enough.

    Else it is a name made from the store's path, in a directory below ``temporary`` that only this
    user can enter.

    Raises:
        ConfigError: That directory belongs to somebody else.
    """
    beside = settings.store.path.parent / SOCKET_NAME
    if len(os.fsencode(beside)) <= SOCKET_PATH_BYTES_MAX:
        return beside
    directory = temporary / f"kelpie-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        message = f"{directory} is not this user's private directory; remove it, or move the store"
        raise ConfigError(message, field="store.path")
    name = digest_bytes(os.fsencode(settings.store.path)).removeprefix("sha256:")
    return directory / f"{name[:32]}.sock"


class Ready(NamedTuple):
    """A server that answers; ``held`` says that its store waits for a release."""

    url: str
    held: bool


class Program(Protocol):
    """A program with actor classes: a file or module, and where its name was given."""

    @property
    def place(self) -> str:
        """The file or module, as `load_actor_classes` reads it."""
        ...

    @property
    def directory(self) -> Path:
        """What a relative place is relative to."""
        ...


async def run_server(
    settings: Settings, announce: Callable[[Ready], None], program: Program | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status.

    With ``LEFT_STATUS`` everything is closed, but a handler still runs that swallowed every
    cancellation: a loop that waits for it would wait for ever, so the process has to exit at once.

    ``announce`` is called once, when requests are answered. ``program`` has actor classes that are
    hosted beside the built-in types.

    Raises:
        InvalidFieldError: The program does not load, or a class in it cannot be hosted as it is
            written; the error names the line.
        StoreHeldError: Another process holds the store.
        UnavailableError: An address cannot be bound.
        ConfigError: A setting does not fit this host.
        CommitUnknownError: The disk failed in a commit; the next start learns what was kept.
    """
    kinds = load_actor_classes(program.place, directory=program.directory) if program else ()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    unix_path = socket_path(settings)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(
            open_app(settings, drive=False, address=str(unix_path), actors=kinds)
        )
        closed = asyncio.Event()

        async def ready(listening: Listening) -> None:
            await app.node.drive()
            stack.enter_context(short_pauses())
            url = _url(listening)
            app.node.world.telemetry.log("info", "server.ready", url=url, version=__version__)
            announce(Ready(url, app.node.store.held))

        async with asyncio.TaskGroup() as group:
            group.create_task(
                serve(
                    app.asgi,
                    host=settings.server.host,
                    port=settings.server.port,
                    unix_path=unix_path,
                    on_ready=ready,
                    should_stop=closed,
                )
            )
            failure = await wait_for_end(stop, lambda: app.node.failure)
            if failure is not None:
                app.node.world.telemetry.log("error", "server.store_failed", error=failure.message)
            app.node.world.telemetry.log("info", "server.draining")
            await app.node.drain()
            closed.set()
    if failure is not None:
        raise failure
    return LEFT_STATUS if app.node.supervisor.left else 0


async def wait_for_end(
    stop: asyncio.Event, failure: Callable[[], KelpieError | None]
) -> KelpieError | None:
    """Return when the process is to end: None if it was asked to, else why its store stopped.

    A store that stopped writes nothing until it is opened again, so that serving on would refuse
    every change; whoever manages services starts the process anew.
    """
    while not stop.is_set():
        found = failure()
        if found is not None:
            return found
        with suppress(TimeoutError):
            async with asyncio.timeout(STORE_LOOK_S):
                await stop.wait()
    return None


def _url(listening: Listening) -> str:
    host = f"[{listening.host}]" if ":" in listening.host else listening.host
    return f"http://{host}:{listening.port}"
