"""Signals: Ctrl-C leaves at once, SIGTERM drains, and nothing is dropped in silence."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.e2e.support.node import listens
from tests.e2e.support.scripts import BEFORE, FILE, call, conversation, on, then
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.support.node import Node, Server

INTERRUPTED = 130
WORDS = "one two three four five six seven eight nine ten"


def test_ctrl_c_ends_a_server_that_does_nothing(node: Node) -> None:
    server = node.serve()
    socket = node.socket
    assert socket.is_socket()
    assert server.process.end(signal.SIGINT) == 0
    assert not listens(server.port)
    assert not socket.exists()
    assert node.ok("agents", "list") == []


def test_ctrl_c_ends_a_tail_that_follows(node: Node) -> None:
    node.script(*conversation())
    node.serve()
    tail = node.kelpie("events", "tail", "--follow", "--json")
    node.ok("agents", "create", "ada")
    node.ok("messages", "send", "ada", "hello")
    shown = tail.await_out("run.finished")
    positions = [json.loads(line)["position"] for line in shown.splitlines()]
    assert positions == list(range(1, len(positions) + 1))
    assert tail.end(signal.SIGINT) == INTERRUPTED
    assert "Traceback" not in tail.err


def test_a_command_says_that_the_server_it_waits_for_is_stopped(node: Node) -> None:
    server = node.serve()
    server.process.send(signal.SIGSTOP)
    asking = node.kelpie("agents", "list", "--json")
    advice = f"is stopped; it answers after: kill -CONT {server.process.pid}"
    eventually(lambda: advice in asking.err, within_s=30, what="a word about the server")
    assert asking.out == ""
    server.process.send(signal.SIGCONT)
    assert asking.wait() == 0
    assert json.loads(asking.out) == []


class Caller:
    """A request that is under way in a thread of its own."""

    def __init__(self, server: Server, path: str, body: dict[str, Any]) -> None:
        self.response: httpx.Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(server, path, body))
        self._thread.start()

    def _ask(self, server: Server, path: str, body: dict[str, Any]) -> None:
        self.response = server.ask("POST", path, json=body)

    def answer(self) -> httpx.Response:
        """The response, once it is there."""
        self._thread.join(30)
        assert self.response is not None
        return self.response


def await_draining(server: Server) -> httpx.Response:
    """The first refusal of a server that has been told to stop."""
    answers: list[httpx.Response] = []

    def refused() -> bool:
        answers.append(server.ask("GET", "/v1/agents"))
        return answers[-1].status_code != 200

    eventually(refused, within_s=5, what="the gate to close")
    return answers[-1]


@pytest.mark.requirement("DRAIN")
def test_a_draining_server_refuses_typed_and_finishes_the_turn(node: Node) -> None:
    node.script(on("slow", text=WORDS, chunk_delay_ms=300), *conversation())
    server = node.serve()
    agent_id = server.post("/v1/agents", {"name": "ada"})["id"]
    caller = Caller(server, f"/v1/agents/{agent_id}/messages", {"input": "slow"})
    eventually(
        lambda: server.get("/v1/effects", state="started")["effects"],
        within_s=10,
        what="the model call to start",
    )
    server.process.send(signal.SIGTERM)
    refusal = await_draining(server)
    assert refusal.status_code == 503
    assert refusal.json()["error"]["code"] == "draining"
    assert refusal.headers["x-should-retry"] == "true"
    assert "kelpie_" in server.ask("GET", "/metrics").text
    answer = caller.answer()
    assert answer.status_code == 200, answer.text
    assert answer.json()["messages"][-1]["content"] == WORDS
    assert server.process.wait() == 0
    assert not listens(server.port)
    assert node.ok("messages", "list", "ada")[-1]["content"] == WORDS


@pytest.mark.requirement("DRAIN")
def test_a_run_that_a_stop_interrupts_goes_on_at_the_next_start(node: Node) -> None:
    node.script(
        on("go", tool_calls=[call("read_file", path=FILE)], first_delay_ms=800),
        then("go", "read_file", text="Read."),
    )
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    server = node.serve()
    made = server.post("/v1/agents", {"name": "ada", "workspace": str(node.workspace)})
    run = server.post(f"/v1/agents/{made['id']}/messages/async", {"input": "go"})
    eventually(
        lambda: server.get("/v1/effects", state="started")["effects"],
        within_s=10,
        what="the model call to start",
    )
    assert server.process.end(signal.SIGTERM) == 0
    again = node.serve()
    eventually(
        lambda: again.get(f"/v1/runs/{run['id']}")["status"] == "completed",
        within_s=10,
        what="the run to end after the start",
    )
    newest = again.get(f"/v1/agents/{made['id']}/messages", limit=1)
    assert newest[0]["content"] == "Read."
    effects = again.get("/v1/effects")["effects"]
    assert [(each["kind"], each["attempt"]) for each in effects] == [
        ("model.generate", 1),
        ("files.read", 1),
        ("model.generate", 1),
    ]


def test_a_follower_is_told_that_the_server_leaves(node: Node) -> None:
    node.script(*conversation())
    server = node.serve()
    tail = node.kelpie("events", "tail", "--follow", "--json")
    node.ok("agents", "create", "ada")
    node.ok("messages", "send", "ada", "hello")
    tail.await_out("run.finished")
    assert server.process.end(signal.SIGTERM) == 0
    assert tail.wait() in {0, 69}
    assert "Traceback" not in tail.err
