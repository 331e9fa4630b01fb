"""Actors of a program under `kelpie serve`: by command, route and reference, across a SIGKILL."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kelpie
from tests.e2e.actors.program import Counter
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.support.node import Node, Server

PROGRAM = str(Path(__file__).with_name("program.py"))
INPUT, MISSING, CONFLICT, BUSY = 2, 4, 5, 75
DEAD_S = 30


@pytest.fixture(scope="module")
def server(shared: Node) -> Server:
    return shared.serve(PROGRAM)


def has_ended(server: Server) -> bool:
    """Whether the server's process is gone."""
    return server.process.status is not None


@pytest.mark.covers(
    "kelpie actors types", "kelpie actors call", "kelpie actors list", "kelpie actors show"
)
def test_actors_are_called_and_looked_at_from_the_command_line(
    shared: Node, server: Server
) -> None:
    (counter,) = shared.ok("actors", "types")
    assert counter["name"] == "Counter"
    assert "add(amount)" in shared.cli("actors", "types").out
    add = ("actors", "call", "Counter/cli", "add", '{"amount": 2}')
    assert shared.ok(*add, "--key", "k") == {"result": 2}
    assert shared.cli(*add, "--key", "k").out == "2\n"
    reused = shared.cli(*add[:-1], '{"amount": 3}', "--key", "k", "--json")
    assert (reused.status, reused.error["code"]) == (CONFLICT, "idempotency_key_reused")
    wrong = shared.cli(*add[:-1], '{"amount": "2"}', "--json")
    assert (wrong.status, wrong.error["fields"]["field"]) == (INPUT, "body.amount")
    nobody = shared.cli("actors", "call", "agent/cli", "add", "--json")
    assert (nobody.status, nobody.error["code"]) == (MISSING, "not_found")
    assert "cli" in [row["key"] for row in shared.ok("actors", "list", "--type", "Counter")]
    assert "Counter/cli" in shared.cli("actors", "list").out
    assert shared.ok("actors", "show", "Counter/cli")["version"] == 1


def test_an_actor_that_only_answered_queries_never_existed(shared: Node, server: Server) -> None:
    assert shared.ok("actors", "call", "Counter/asked", "total") == {"result": 0}
    shown = shared.cli("actors", "show", "Counter/asked", "--json")
    assert (shown.status, shown.error["code"]) == (MISSING, "not_found")
    assert "asked" not in [row["key"] for row in shared.ok("actors", "list")]
    paused = shared.ok("actors", "pause", "Counter/asked")
    assert (paused["version"], paused["paused"]) == (0, True)
    assert shared.ok("actors", "show", "Counter/asked")["paused"], "a pause is shown"
    assert not shared.ok("actors", "resume", "Counter/asked")["paused"]


@pytest.mark.covers("kelpie actors pause", "kelpie actors resume", "kelpie actors kill")
def test_an_actor_is_paused_resumed_and_killed_by_its_owner(shared: Node, server: Server) -> None:
    add = ("actors", "call", "Counter/care", "add", '{"amount": 1}')
    assert shared.ok(*add) == {"result": 1}
    assert shared.ok("actors", "pause", "Counter/care")["paused"]
    late = shared.cli(*add, "--timeout-ms", "50", "--json")
    assert (late.status, late.error["code"]) == (BUSY, "deadline_exceeded")
    assert shared.cli("actors", "call", "Counter/care", "total").out == "1\n"
    assert not shared.ok("actors", "resume", "Counter/care")["paused"]
    assert shared.ok("actors", "kill", "Counter/care") == {"killed": True}
    assert shared.ok("actors", "call", "Counter/care", "total")["result"] in {1, 2}


@pytest.mark.covers("kelpie actors dead-letters", "kelpie actors replay")
@pytest.mark.covers("GET /v1/dead-letters", "POST /v1/dead-letters/{id}/replay")
@pytest.mark.timeout(120)
def test_dead_letters_of_both_kinds_are_kept_and_happen_once_when_replayed(
    shared: Node, server: Server
) -> None:
    flag = shared.directory / "flag"
    server.post("/v1/actors/Counter/sender/tell", {"other": "poisoned", "flag": str(flag)})
    server.post("/v1/actors/Counter/alarmed/set_alarm", {"flag": str(flag)})
    eventually(
        lambda: len(server.get("/v1/dead-letters")["dead_letters"]) == 2,
        within_s=DEAD_S,
        what="the message and the reminder to be dead letters",
    )
    letters = {row["receiver"]: row for row in shared.ok("actors", "dead-letters")}
    message, alarm = letters["Counter/poisoned"], letters["Counter/alarmed"]
    assert (message["sender"], alarm["sender"]) == ("Counter/sender", "Counter/alarmed")
    assert alarm["error"].startswith("reminder 'alarm':")
    for letter in (message, alarm):
        assert "the flag is down" in letter["error"]
        assert "Traceback" in letter["error"]
    refused = server.ask("POST", f"/v1/dead-letters/{message['id']}/replay")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_needed")
    flag.touch()
    for letter in (message, alarm):
        assert shared.ok("actors", "replay", str(letter["id"])) == {"id": letter["id"]}
        again = shared.cli("actors", "replay", str(letter["id"]), "--json")
        assert (again.status, again.error["code"]) == (MISSING, "not_found")
    for receiver in ("poisoned", "alarmed"):
        eventually(
            partial(reads_one, server, receiver),
            within_s=DEAD_S,
            what="the letter to arrive",
        )
    assert shared.ok("actors", "dead-letters") == []


def reads_one(server: Server, key: str) -> bool:
    """Whether the counter says that one letter reached it."""
    total = server.post(f"/v1/actors/Counter/{key}/total")["result"]
    assert total in {0, 1}, "a letter arrived twice"
    return bool(total)


@pytest.mark.covers(
    "POST /v1/actors/{type}/{key}/{method}",
    "GET /v1/actors",
    "GET /v1/actors/{type}/{key}",
    "GET /v1/actor-types",
    "POST /v1/actor-admin/{type}/{key}/pause",
    "POST /v1/actor-admin/{type}/{key}/resume",
    "POST /v1/actor-admin/{type}/{key}/kill",
)
def test_the_routes_need_a_key_where_they_change_how_an_actor_runs(node: Node) -> None:
    node.data.mkdir()
    server = node.serve(PROGRAM, SECRET="s3cret", KELPIE_SERVER_API_KEYS="env:SECRET")
    with server.client(headers={"authorization": "Bearer s3cret"}) as http:
        assert http.post("/v1/actors/Counter/a/add", json={"amount": 4}).json() == {"result": 4}
        assert http.get("/v1/actors").json()["actors"][0]["key"] == "a"
        assert http.post("/v1/actor-admin/Counter/a/pause").json()["paused"]
        assert http.get("/v1/actors/Counter/a").json()["paused"]
        assert not http.post("/v1/actor-admin/Counter/a/resume").json()["paused"]
        assert http.post("/v1/actor-admin/Counter/a/kill").json() == {"killed": True}
        assert http.get("/v1/actor-types").json()["types"][0]["name"] == "Counter"
    assert server.ask("POST", "/v1/actors/Counter/a/total").status_code == 401


def test_what_was_acknowledged_survives_a_sigkill_and_a_repeat_happens_once(node: Node) -> None:
    async def add(server: Server, count: int) -> list[int]:
        async with kelpie.connect(server.url) as remote:
            return [
                await remote.ref(Counter, "a", idempotency_key=f"k{number}").add(1)
                for number in range(count)
            ]

    for kill in range(1, 4):
        server = node.serve(PROGRAM)
        assert asyncio.run(add(server, 5 * kill)) == list(range(1, 5 * kill + 1))
        server.process.send(signal.SIGKILL)
        eventually(partial(has_ended, server), within_s=10, what="the server's end")
    last = node.serve(PROGRAM)
    assert last.post("/v1/actors/Counter/a/total") == {"result": 15}


def test_a_program_that_does_not_load_is_refused_with_its_line(node: Node) -> None:
    (node.directory / "broken.py").write_text("x = 1\nraise ValueError('no')\n", encoding="utf-8")
    done = node.cli("serve", "broken.py", "--json")
    assert (done.status, done.error["code"]) == (INPUT, "invalid_field")
    assert "broken.py:2 does not load: ValueError: no" in done.error["message"]
    assert done.error["fields"]["line"] == 2


def test_a_class_that_cannot_be_hosted_is_refused_with_its_file_and_line(node: Node) -> None:
    text = Path(PROGRAM).read_text(encoding="utf-8").replace("amount: int", "amount")
    (node.directory / "wrong.py").write_text(text, encoding="utf-8")
    done = node.cli("serve", "wrong.py", "--json")
    assert (done.status, done.error["code"]) == (INPUT, "invalid_field")
    line = next(n for n, each in enumerate(text.splitlines(), 1) if "def add(" in each) - 1
    assert f"wrong.py:{line}: Counter.add: parameter 'amount'" in done.error["message"]
    assert done.error["fields"]["line"] == line


STUBBORN = """
import asyncio
from kelpie import Actor, State, command

class Tally(State):
    total: int = 0

class Stubborn(Actor[Tally]):
    @command
    def add(self) -> int:
        self.state.total += 1
        return self.state.total

    @command
    async def hang(self) -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
"""


@pytest.mark.requirement("DRAIN-BOUNDED")
@pytest.mark.timeout(180)
def test_a_handler_that_will_not_end_is_named_and_left(node: Node) -> None:
    (node.directory / "stubborn.py").write_text(STUBBORN, encoding="utf-8")
    server = node.serve("stubborn.py")
    add = ("actors", "call", "Stubborn/kept", "add")
    assert node.ok(*add) == {"result": 1}
    hanging = node.kelpie("actors", "call", "Stubborn/hog", "hang", "--json")
    handler = ("actors", "show", "Stubborn/hog")
    eventually(
        lambda: node.cli(*handler, "--json").out.count('"hang"'), within_s=30, what="the handler"
    )
    server.process.send(signal.SIGTERM)
    assert server.process.wait(120) == BUSY
    assert "tasks.left" in server.process.err
    assert "actors.handler:default/Stubborn/hog" in server.process.err
    assert hanging.wait() != 0
    node.serve("stubborn.py")
    assert node.ok(*add) == {"result": 2}
