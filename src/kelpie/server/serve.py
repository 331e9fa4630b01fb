"""Puts the ASGI callable on sockets: one on TCP, one on the store's Unix socket.

The only module of this room that knows a socket; what happens on a connection is in `connection`.
Start is all or nothing: both listeners are bound before either listens, and nothing is announced
before both do. Handles no signal; whoever asked for serving asks for the end by an event.
"""

from __future__ import annotations

import asyncio
import os
import socket  # noqa: TID251  the server's own listeners; a simulation enters at the ASGI callable
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

from uvicorn.config import Config
from uvicorn.server import Server

from kelpie.core.errors import UnavailableError
from kelpie.core.limits import DRAIN_TIMEOUT_MS
from kelpie.server.auth import LOCAL_SCOPE
from kelpie.server.connection import BoundedProtocol
from kelpie.server.http import AsgiApp, Receive, Scope, Send

BACKLOG: Final = 1_024  # connections the kernel holds while the loop is busy
KEEP_ALIVE_S: Final = 75  # longer than the idle time of common client pools
SOCKET_MODE: Final = 0o600


class Listening(NamedTuple):
    """Where the server can be reached."""

    host: str
    port: int
    unix_path: Path | None


class _QuietServer(Server):
    """A uvicorn server that leaves signals to the process, and says when it accepts."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    def capture_signals(self) -> Any:
        """Capture nothing."""
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from now on."""
        await super().startup(sockets)
        self.accepting.set()


async def serve(
    app: AsgiApp,
    *,
    host: str,
    port: int,
    unix_path: Path | None = None,
    on_ready: Callable[[Listening], Awaitable[None]],
    should_stop: asyncio.Event,
) -> None:
    """Serve ``app`` until ``should_stop`` is set, then let open requests finish.

    Requests on the Unix socket are marked as local: only this user can open it. New connections
    end first; open requests have ``DRAIN_TIMEOUT_MS``, then they are cancelled. Port 0 takes a
    free one; ``on_ready`` is told which, once both listeners accept.

    Raises:
        UnavailableError: An address cannot be bound; nothing listens then.
    """
    with ExitStack() as stack:
        tcp = stack.enter_context(_bind_tcp(host, port))
        listeners = [(tcp, app)]
        if unix_path is not None:
            unix = stack.enter_context(_bind_unix(unix_path))
            listeners.append((unix, mark_local(app)))
        servers = [(_make_server(target), listener) for listener, target in listeners]
        address = tcp.getsockname()
        async with asyncio.TaskGroup() as group:
            for server, listener in servers:
                group.create_task(server.serve(sockets=[listener]))
            try:
                for server, _ in servers:
                    await server.accepting.wait()
                await on_ready(Listening(str(address[0]), int(address[1]), unix_path))
                await should_stop.wait()
            finally:
                for server, _ in servers:
                    server.should_exit = True


def mark_local(app: AsgiApp) -> AsgiApp:
    """Return ``app`` for requests that came over the owner's own socket."""

    async def local(scope: Scope, receive: Receive, send: Send) -> None:
        scope[LOCAL_SCOPE] = True
        await app(scope, receive, send)

    return local


def _make_server(app: AsgiApp) -> _QuietServer:
    config = Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_TIMEOUT_MS // 1_000,
    )
    return _QuietServer(config)


@contextmanager
def _bind_tcp(host: str, port: int) -> Generator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; without, every answer
    # of two writes waits 40 ms for an acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(0.0)
        _bind(listener, (host, port), f"{host}:{port}")
        yield listener


@contextmanager
def _bind_unix(path: Path) -> Generator[socket.socket]:
    """Bind the Unix socket; its mode is set before it listens, so nobody slips in between.

    The caller holds the store's lock, so a socket that is already there belongs to nobody.
    """
    if path.is_socket():
        path.unlink()
    elif os.path.lexists(path):
        message = (
            f"{path} is where the store's socket goes, and is no socket; look at what it is, "
            "and move it away"
        )
        raise UnavailableError(message, address=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(0.0)
        _bind(listener, str(path), str(path))
        try:
            path.chmod(SOCKET_MODE)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _bind(listener: socket.socket, address: Any, shown: str) -> None:
    try:
        listener.bind(address)
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnavailableError(
            f"cannot listen on {shown}: {problem}; free it or choose another address",
            address=shown,
        ) from error
