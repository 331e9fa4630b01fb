"""The three roads to the product, and the transport that streams from an app in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from kelpie.cli.asgi import AppTransport
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import run_async
from kelpie.cli.patience import PATIENCE_S, Patience
from kelpie.cli.processes import process_state
from kelpie.cli.sse import read_events
from kelpie.core.errors import StoreHeldError
from kelpie.settings import Settings
from kelpie.sim.loop import SimulatedLoop
from tests.unit.cli.product import Desk
from tests.unit.cli.test_care import Holding


class _Handler(BaseHTTPRequestHandler):
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({"path": self.path} | {k.lower(): v for k, v in self.headers.items()})
        body = b"oops" if "broken" in self.path else b"[]"
        self.send_response(500 if "broken" in self.path else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Keep stderr for the command."""


class _UnixServer(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "kelpie", 0


@contextmanager
def _serving(server: HTTPServer) -> Iterator[list[dict[str, str]]]:
    seen: list[dict[str, str]] = []
    server.RequestHandlerClass = type("Handler", (_Handler,), {"seen": seen})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_named_server_gets_the_callers_key(desk: Desk) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    url = f"http://127.0.0.1:{server.server_port}/"
    desk.environment |= {"KELPIE_API_KEY": "secret", "HTTP_PROXY": "http://127.0.0.1:9"}
    desk.holder = Holding()
    with _serving(server) as seen:
        assert desk.type("agents", "list", "--url", url, "--json").json() == []
        desk.environment["KELPIE_URL"] = url
        assert desk.type("agents", "list").status == 0
    assert seen[0]["path"] == "/v1/agents/?limit=50"
    assert [request["authorization"] for request in seen] == ["Bearer secret"] * 2
    assert desk.product.drives == []


def test_the_holder_is_asked_on_its_socket_without_a_key(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "s"
    desk.environment["KELPIE_API_KEY"] = "secret"
    desk.holder = Holding(address=str(path))
    with _serving(_UnixServer(str(path), _Handler)) as seen:  # type: ignore[arg-type]
        assert desk.type("agents", "list", "--json").json() == []
    assert "authorization" not in seen[0]
    assert desk.product.drives == []


def test_a_holder_that_does_not_listen_is_named(desk: Desk) -> None:
    desk.holder = Holding()
    outcome = desk.type("agents", "list")
    assert outcome.status == 73
    assert "process 4242 holds" in outcome.stderr
    assert "next: ps -p 4242" in outcome.stderr


def test_a_server_that_does_not_answer_exits_69(desk: Desk) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        outcome = desk.type("agents", "list", "--url", url, "--json")
    assert outcome.status == 69
    assert outcome.error()["next"] == "kelpie serve"


def test_a_server_that_is_none_is_a_typed_error(desk: Desk) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    url = f"http://127.0.0.1:{server.server_port}/broken"
    with _serving(server):
        outcome = desk.type("agents", "list", "--url", url)
    assert outcome.status == 69
    assert "HTTP status 500, and not as Kelpie does; is the address right" in outcome.stderr


@pytest.mark.parametrize("url", ["localhost:8283", "ftp://x", "http://"])
def test_a_malformed_url_is_bad_input(desk: Desk, url: str) -> None:
    assert desk.type("agents", "list", "--url", url).status == 2


def test_what_opening_raises_reaches_the_terminal(desk: Desk) -> None:
    def refuse(settings: Settings, *, drive: bool) -> Any:
        raise StoreHeldError("another process holds the store")

    desk.product.open = refuse  # type: ignore[method-assign]
    outcome = desk.type("agents", "list", "--json")
    assert (outcome.status, outcome.error()["code"]) == (73, "store_held")


async def _request(app: Any, take: int) -> list[bytes]:
    chunks: list[bytes] = []
    async with asyncio.TaskGroup() as group:
        transport = AppTransport(app, group)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://kelpie") as client,
            client.stream("GET", "/") as response,
        ):
            async for chunk in response.aiter_raw():
                chunks.append(chunk)
                if len(chunks) == take:
                    break
    return chunks


async def _start(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_chunks_arrive_while_the_app_still_runs_and_leaving_ends_it() -> None:
    left: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["kelpie.local"] is True
        await receive()
        await _start(send)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        left.append((await receive())["type"])

    assert run_async(_request(app, 1)) == [b"one"]
    assert left == ["http.disconnect"]


def test_an_app_that_writes_faster_than_it_is_read_is_held_back() -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _start(send)
        for number in range(500):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            sent.append(number)

    async def read() -> int:
        async with asyncio.TaskGroup() as group:
            transport = AppTransport(app, group)
            client = httpx.AsyncClient(transport=transport, base_url="http://kelpie")
            async with client, client.stream("GET", "/") as response:
                for _ in range(1_000):
                    await asyncio.sleep(0)
                waiting = len(sent)
                assert len([chunk async for chunk in response.aiter_raw()]) == 500
        return waiting

    assert run_async(read()) < 100


def test_an_app_that_answers_nothing_is_an_error_and_no_hang() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    with pytest.raises(httpx.RemoteProtocolError):
        run_async(_request(app, 1))


async def _parse(*chunks: bytes) -> list[tuple[str, str, str]]:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [(event.name, event.data, event.id) async for event in read_events(source())]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_events_are_read_whatever_the_size_of_the_pieces(size: int) -> None:
    text = ": ping\n\nid: 4\nevent: a\ndata: é1\ndata: 2\r\n\r\n"
    raw = f"{text}data\n\nretry: 5\n\ndata: end\n\ndata: x".encode()
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert asyncio.run(_parse(*pieces)) == [("a", "é1\n2", "4"), ("", "", "4"), ("", "end", "4")]


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(CommandError, match="bytes at once"):
        asyncio.run(_parse(*[b"x" * 1_000_000] * 9))


def test_a_directory_on_the_command_line_is_stronger_than_a_url_of_the_environment(
    desk: Desk,
) -> None:
    desk.environment["KELPIE_URL"] = "http://127.0.0.1:9"
    desk.product.routes["GET", "/v1/agents/"] = []
    assert desk.type("agents", "list", "--data-dir", "d").status == 0
    assert desk.product.drives == [False]
    both = desk.type("agents", "list", "--data-dir", "d", "--url", "http://127.0.0.1:9")
    assert both.status == 64
    assert "either --url or --data-dir" in both.stderr


def test_a_server_elsewhere_is_not_started_by_a_command_of_this_machine(desk: Desk) -> None:
    outcome = desk.type("agents", "list", "--url", "http://kelpie.invalid", "--json")
    assert outcome.status == 69
    assert outcome.error()["next"] == ""
    assert "is the address right (--url, KELPIE_URL)" in outcome.error()["message"]


def test_a_holder_that_has_not_said_its_name_is_no_process_0(desk: Desk) -> None:
    desk.holder = Holding(pid=0)
    outcome = desk.type("agents", "list")
    assert outcome.status == 73
    assert outcome.stderr.startswith("kelpie: another process holds ")


def _patience(state: str, *, pid: int = 4242) -> tuple[Patience, list[str]]:
    said: list[str] = []
    return Patience(said.append, who="process 4242", pid=pid, find_state=lambda _: state), said


def test_a_holder_that_is_stopped_is_named_once_with_what_makes_it_go_on() -> None:
    patience, said = _patience("T")
    patience.speak(may_be_long=True)
    patience.speak(may_be_long=False)
    assert said == ["kelpie: process 4242 is stopped; it answers after: kill -CONT 4242"]


def test_a_slow_answer_is_worth_a_line_unless_an_agent_may_be_thinking() -> None:
    patience, said = _patience("S")
    patience.speak(may_be_long=True)
    assert said == []
    patience.speak(may_be_long=False)
    assert said == ["kelpie: waiting for process 4242; Ctrl-C ends the wait"]


@pytest.mark.parametrize(("takes_s", "lines"), [(0.0, 0), (PATIENCE_S + 1, 1)])
def test_an_answer_in_time_says_nothing_and_a_late_one_a_line(takes_s: float, lines: int) -> None:
    patience, said = _patience("T")

    async def ask() -> None:
        with patience.during(may_be_long=False):
            await asyncio.sleep(takes_s)
        await asyncio.sleep(2 * PATIENCE_S)

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(ask())
    assert len(said) == lines


def test_the_state_of_a_process_is_read_whatever_it_is_called() -> None:
    assert process_state(os.getpid()) == "R"
    assert process_state(2**22 + 1) == ""


def test_a_command_that_opens_the_store_logs_errors_only_unless_a_person_chose(desk: Desk) -> None:
    levels: list[str] = []
    opened = desk.product.open

    def watch(settings: Settings, *, drive: bool) -> Any:
        levels.append(settings.log.level)
        return opened(settings, drive=drive)

    desk.product.open = watch  # type: ignore[method-assign]
    desk.product.routes["GET", "/v1/agents/"] = []
    assert desk.type("agents", "list").status == 0
    desk.environment["KELPIE_LOG"] = "info"
    assert desk.type("agents", "list").status == 0
    assert levels == ["error", "info"]


def _hang_up(listener: socket.socket) -> None:
    caller, _ = listener.accept()
    caller.close()


def test_a_server_that_dies_in_an_answer_is_said_to_have_and_to_act_perhaps(
    desk: Desk, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(path))
        listener.listen()
        pool.submit(_hang_up, listener)
        desk.holder = Holding(pid=os.getpid(), address=str(path))
        outcome = desk.type("agents", "list", "--json")
    assert outcome.status == 69
    expected = "broke off: the connection ended in the middle of an answer; it may still act"
    assert expected in outcome.error()["message"]


def test_a_command_that_was_stopped_with_ctrl_z_is_said_to_hold_the_store(desk: Desk) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        desk.holder = Holding(pid=process.pid)
        outcome = desk.type("agents", "list")
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n")
    assert outcome.status == 73
    assert "it is stopped; let it go on (fg in its terminal), or end it" in outcome.stderr


def test_a_server_beside_a_command_that_holds_the_store_names_its_process() -> None:
    held = StoreHeldError("held", store="s", pid=7, address="")
    assert CommandError.of(held).next_step == "ps -p 7"
    listening = StoreHeldError("held", store="s", pid=7, address="/s/kelpie.sock")
    assert CommandError.of(listening).next_step == "kelpie store stats"
