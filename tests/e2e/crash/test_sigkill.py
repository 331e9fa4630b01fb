"""The demo's scenario under real SIGKILLs: nothing that was promised is lost, nothing is repeated.

A person's client drives agents through one scenario after another: read a file, rewrite it through
a Diff Card, run a command, land what it changed. The server is killed at moments that a seed draws
and started again, until all kills are spent; then the last scenarios end in peace.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from kelpie.core.limits import EFFECT_ATTEMPTS_MAX
from tests.e2e.support.node import Node, Server
from tests.e2e.support.processes import find_processes
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, Step, call, on, say, then, write
from tests.waiting import eventually

KILLS = 20
# A scenario takes about this long; a kill is drawn from it, counted from when the server answers.
SCENARIO_S = 0.9
LOG = "log.txt"
# An interrupted command stays open until the last moment at which it could still have run.
COMMAND_S = 1
UNKNOWN_S = 30
COMMAND = ["sh", "-c", f"echo ran >> {LOG}; sleep 0.2"]
ALIVE = {"created", "running"}

Json = Any


def scenario(word: str, *, idempotent: bool) -> tuple[Step, ...]:
    """The model's part, whenever the person says `word`."""
    command = call("run_command", argv=COMMAND, timeout_s=COMMAND_S, idempotent=idempotent)
    return (
        on(word, tool_calls=[call("read_file", path=FILE)]),
        then(word, "read_file", tool_calls=[write()]),
        then(word, "write_file", tool_calls=[command]),
        then(word, "run_command", text="Done."),
    )


@dataclass(slots=True, kw_only=True)
class Round:
    """One agent on its way through the scenario, and what was acknowledged to its person."""

    number: int
    agent_id: str
    workspace: Path
    word: str
    runs: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)


class Client:
    """Repeats what breaks off, under the same key, and starts the server again when it died."""

    def __init__(self, node: Node, draw: random.Random) -> None:
        self.kills = 0
        self._node = node
        self._draw = draw
        self._server = self._start()

    @property
    def server(self) -> Server:
        """The server of this moment."""
        return self._server

    def send(self, method: str, path: str, *, key: str = "", **options: Any) -> httpx.Response:
        """Returns the answer to a request, however often it takes."""
        headers = {"idempotency-key": key} if key else {}
        while True:
            try:
                return self._server.ask(method, path, headers=headers, **options)
            except httpx.TransportError:
                self._revive()

    def read(self, path: str, **parameters: Any) -> Json:
        """Returns the JSON answer of a GET."""
        response = self.send("GET", path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def _start(self) -> Server:
        server = self._node.serve()
        if self.kills < KILLS:
            delay_s = self._draw.uniform(0, SCENARIO_S)
            timer = threading.Timer(delay_s, server.process.send, [signal.SIGKILL])
            timer.daemon = True
            timer.start()
        return server

    def _revive(self) -> None:
        process = self._server.process
        eventually(lambda: process.status is not None, within_s=10, what="the server's end")
        assert process.status == -signal.SIGKILL, process.err
        self.kills += 1
        self._server = self._start()


def begin(client: Client, node: Node, number: int) -> Round:
    """Makes an agent with a workspace of its own and tells it to go."""
    workspace = node.workspace / str(number)
    workspace.mkdir()
    workspace.chmod(0o777)
    (workspace / FILE).write_text(BEFORE, encoding="utf-8")
    body = {"name": f"agent {number}", "workspace": str(workspace)}
    made = client.send("POST", "/v1/agents", key=f"create-{number}", json=body)
    assert made.status_code == 200, made.text
    word = "again" if number % 3 == 2 else "once"
    begun = Round(number=number, agent_id=made.json()["id"], workspace=workspace, word=word)
    assert say_to(client, begun, f"go {word} {number}")
    return begun


def say_to(client: Client, begun: Round, text: str) -> bool:
    """Sends a message; True when it was acknowledged, False when the agent waits for a person."""
    path = f"/v1/agents/{begun.agent_id}/messages/async"
    response = client.send("POST", path, key=f"say {text}", json={"input": text})
    if response.status_code == 409:
        return False
    assert response.status_code == 200, response.text
    begun.runs.append(response.json()["id"])
    begun.acknowledged.append(text)
    return True


def approve_all(client: Client) -> None:
    """Says yes to every card that waits, to exactly what it shows."""
    for card in client.read("/v1/approvals")["effects"]:
        path = f"/v1/approvals/{card['effect_id']}/approve"
        answer = client.send("POST", path, json={"digest": card["digest"]})
        # The first yes may have been committed just before the server died.
        assert answer.status_code in {200, 409}, answer.text


def has_ended(client: Client, begun: Round) -> bool:
    """Whether every run of a round has ended; the second message is sent on the way."""
    if len(begun.runs) < 2 and not say_to(client, begun, f"note {begun.number}"):
        return False
    statuses = {client.read(f"/v1/runs/{run_id}")["status"] for run_id in begun.runs}
    assert statuses <= ALIVE | {"completed"}, statuses
    return statuses == {"completed"}


def play(client: Client, node: Node) -> list[Round]:
    """Begins a round in every life of the server, and plays the person until all have ended."""
    rounds: list[Round] = []
    while client.kills < KILLS or not rounds:
        rounds.append(begin(client, node, len(rounds)))
        has_turned = partial(has_ended_or_died, client, rounds, client.kills)
        eventually(has_turned, within_s=UNKNOWN_S, what="the rounds to end, or the next kill")
    eventually(lambda: work(client, rounds), within_s=UNKNOWN_S, what="the last rounds to end")
    return rounds


def has_ended_or_died(client: Client, rounds: list[Round], kills: int) -> bool:
    """Whether every round has ended, or the server has been killed again."""
    return work(client, rounds) or client.kills > kills


def work(client: Client, rounds: list[Round]) -> bool:
    """Does what a person can do at this moment; True when every round has ended."""
    approve_all(client)
    ended = [has_ended(client, begun) for begun in rounds]
    return all(ended)


def read_all(client: Client, path: str, rows: str) -> list[dict[str, Any]]:
    """Every row of a paged list."""
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = client.read(path, limit=1000, **after)
        found += page[rows]
        if page["next_after"] is None:
            return found
        after = {"after": page["next_after"]}


@pytest.mark.timeout(180)
@pytest.mark.requirement("CRASH-SIGKILL")
def test_twenty_kills_lose_nothing_and_repeat_nothing(node: Node) -> None:
    seed = int(os.environ.get("KELPIE_E2E_SEED") or random.SystemRandom().randrange(2**32))
    print(f"KELPIE_E2E_SEED={seed}")
    once, again = scenario("once", idempotent=False), scenario("again", idempotent=True)
    node.script(*once, *again, say("Noted."))
    client = Client(node, random.Random(seed))
    rounds = play(client, node)
    effects = read_all(client, "/v1/effects", "effects")
    assert_promises(effects, read_all(client, "/v1/audit", "records"))
    for begun in rounds:
        assert_transcript(client, begun)
        own = [each for each in effects if each["actor"] == f"agent/{begun.agent_id}"]
        assert_workspace(begun, own)
    assert client.read("/v1/audit/verify")["ok"]
    assert client.send("POST", "/v1/store/check").json() == {
        "ok": True,
        "problems": [],
        "damaged": [],
    }
    client.server.process.kill()
    eventually(lambda: not find_processes(COMMAND[-1]), within_s=5, what="no jail to live")
    states = Counter(f"{each['kind']} {each['state']}" for each in effects)
    print(f"{client.kills} kills, {len(rounds)} rounds, {dict(states)}")


def assert_promises(effects: list[dict[str, Any]], audit: list[dict[str, Any]]) -> None:
    """Each effect came to the end that its promise allows, in as many attempts as it allows."""
    moved = Counter((record["body"].get("effect_id"), record["kind"]) for record in audit)
    for effect in effects:
        effect_id = effect["effect_id"]
        started = moved[effect_id, "effect.started"]
        assert started == effect["attempt"] >= 1, effect
        assert moved[effect_id, "effect.done"] == (effect["state"] == "done"), effect
        match effect["promise"]:
            case "once":
                assert started == 1, effect
                # What failed without being sent changed nothing, and says so.
                is_unsent = effect["state"] == "failed" and not effect["outcome"]["sent"]
                assert effect["state"] in {"done", "unknown"} or is_unsent, repr(effect)
                assert moved[effect_id, "effect.unknown"] == (effect["state"] == "unknown")
            case _:
                # Kills may meet the same effect as often as it is tried.
                is_spent = effect["state"] == "failed" and started == EFFECT_ATTEMPTS_MAX
                assert effect["state"] == "done" or is_spent, repr(effect)


def assert_transcript(client: Client, begun: Round) -> None:
    """Every acknowledged message stands there once, and every call has exactly one return."""
    path = f"/v1/agents/{begun.agent_id}/messages"
    messages = client.read(path, order="asc", limit=1000)
    said = Counter(m["content"] for m in messages if m["message_type"] == "user_message")
    assert said == Counter(begun.acknowledged)
    asked = Counter(
        each["tool_call_id"]
        for message in messages
        if message["message_type"] in {"tool_call_message", "approval_request_message"}
        for each in message["tool_calls"]
    )
    answered = Counter(
        m["tool_call_id"] for m in messages if m["message_type"] == "tool_return_message"
    )
    assert asked == answered
    assert set(asked.values()) == {1}
    assert len(asked) == 3


def assert_workspace(begun: Round, effects: list[dict[str, Any]]) -> None:
    """The files are what the approved cards said they would be."""
    assert (begun.workspace / FILE).read_text(encoding="utf-8") == AFTER
    changes = [each for each in effects if each["kind"] == "files.apply"]
    shown = [file for each in changes for file in each["card"]["files"]]
    assert [file["path"] for file in shown] == [FILE, LOG][: len(shown)]
    assert shown[0]["diff"].splitlines()[-2:] == ["-before", "+after"]
    (command,) = [each for each in effects if each["kind"] == "command.run"]
    assert command["promise"] == ("repeatable" if begun.word == "again" else "once")
    if command["state"] == "done":
        assert (begun.workspace / LOG).read_text(encoding="utf-8") == "ran\n"
    else:
        assert command["state"] in {"unknown", "failed"}
        assert not (begun.workspace / LOG).exists()
