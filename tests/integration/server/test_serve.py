"""The edge on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from kelpie.core.errors import UnavailableError
from kelpie.server.connection import BoundedProtocol
from kelpie.server.serve import Listening, serve
from tests.unit.server.world import World, require_error


@asynccontextmanager
async def served(world: World, unix_path: Path) -> AsyncIterator[Listening]:
    """Serve a world on a free port until the end of the block."""
    ready: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def announce(listening: Listening) -> None:
        ready.set_result(listening)

    async with asyncio.TaskGroup() as group:
        group.create_task(
            serve(
                world.app(),
                host="127.0.0.1",
                port=0,
                unix_path=unix_path,
                on_ready=announce,
                should_stop=stop,
            )
        )
        try:
            yield await ready
        finally:
            stop.set()


async def test_both_listeners_serve_the_same_app_and_only_the_owners_is_local(
    tmp_path: Path,
) -> None:
    world, path = World(), tmp_path / "s.sock"
    async with served(world, path) as listening:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        url = f"http://127.0.0.1:{listening.port}"
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/v1/health/")).json()["version"] == "1.2.3"
            require_error(await http.post("/v1/store/release"), 403, "local_only")
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(base_url="http://kelpie", transport=transport) as http:
            assert (await http.post("/v1/store/release")).json() == {"held": False}
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError), socket.socket() as probe:
        probe.connect(("127.0.0.1", listening.port))


async def test_an_answer_does_not_wait_for_the_clients_acknowledgement(tmp_path: Path) -> None:
    async with served(World(), tmp_path / "s.sock") as listening:
        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.port}") as http:
            await http.get("/v1/health")
            started = loop.time()
            for _ in range(10):
                await http.get("/v1/health")
            # Ten delayed acknowledgements would be 400 ms.
            assert loop.time() - started < 0.3


class HastyProtocol(BoundedProtocol):
    """The protocol with bounds that a test can wait for."""

    receive_timeout_s = 0.05
    connections_max = 2


@asynccontextmanager
async def hasty() -> AsyncIterator[int]:
    """Serve with the hasty protocol; yields the port."""
    config, state = Config(World().app(), ws="none", lifespan="off", log_config=None), ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: HastyProtocol(config, state, {}), host="127.0.0.1", port=0
    )
    async with listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /v1/health HTTP/1.1\r\nHost: local",
        b"POST /v1/agents/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
        b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/he",
    ],
)
async def test_a_request_that_does_not_arrive_loses_its_connection(sent: bytes) -> None:
    async with hasty() as port, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            received = await reader.read()
        assert received.count(b"200 OK") == sent.count(b"\r\n\r\nGET")
        writer.close()


async def test_connections_beyond_the_bound_are_closed_at_once() -> None:
    async with hasty() as port, asyncio.timeout(10):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, each in (*held, (reader, writer)):
            each.close()


async def _fail_to_serve(*, port: int, unix_path: Path) -> None:
    async def announce(listening: Listening) -> None:
        raise AssertionError(f"announced {listening}")

    await serve(
        World().app(),
        host="127.0.0.1",
        port=port,
        unix_path=unix_path,
        on_ready=announce,
        should_stop=asyncio.Event(),
    )


async def test_a_taken_address_leaves_nothing_listening(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        path = tmp_path / "s.sock"
        with pytest.raises(UnavailableError, match="cannot listen on 127"):
            await _fail_to_serve(port=taken.getsockname()[1], unix_path=path)
        assert not path.exists()


async def test_a_file_where_the_socket_goes_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UnavailableError, match="is no socket; look at what it is"):
        await _fail_to_serve(port=0, unix_path=path)
    assert path.read_text(encoding="utf-8") == "mine"


async def test_heads_are_bounded(tmp_path: Path) -> None:
    async with served(World(), tmp_path / "s.sock") as listening:
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.port}")
        async with http:
            large = await http.get("/v1/health", headers={"x-filler": "x" * 65_536})
            fine = await http.get("/v1/health", headers={"x-filler": "x" * 60_000})
    assert large.status_code == 431
    assert large.json()["error"]["code"] == "headers_too_large"
    assert fine.status_code == 200


async def test_a_body_over_the_limit_is_answered_without_being_kept(tmp_path: Path) -> None:
    async with served(World(), tmp_path / "s.sock") as listening:
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.port)
        head = b"POST /v1/agents HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n"
        writer.write(head)
        await writer.drain()
        assert b"413" in await reader.readline()
        writer.close()
        await writer.wait_closed()
