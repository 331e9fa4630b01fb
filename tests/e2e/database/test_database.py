"""A server over a PostgreSQL database: kills, restarts, and what it says when it cannot begin."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.node import Node
from tests.postgres import GUARDED, OWNER, PASSWORD, make_guarded_role, make_server, shared_server
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.postgres import PostgresServer

PROGRAM = str(Path(__file__).parents[1] / "actors" / "program.py")
CONFIG, HELD = 2, 73
GONE_S = 30.0


class Database:
    """An empty database of the shared server."""

    def __init__(self) -> None:
        self.server = shared_server()
        self.name = asyncio.run(self.server.create_database())

    def address(self, *, role: str = OWNER, password: str = "") -> str:
        """Where it is, for a role."""
        return self.server.dsn(self.name, role=role, password=password)


@pytest.fixture
def database() -> Iterator[Database]:
    made = Database()
    yield made
    asyncio.run(made.server.drop_database(made.name))


def add(node: Node, key: str, amount: int, store: str) -> int:
    """What a counter holds after an amount was added to it."""
    words = ("actors", "call", f"Counter/{key}", "add", f'{{"amount": {amount}}}')
    total: int = node.ok(*words, KELPIE_STORE=store)["result"]
    return total


def test_what_was_acknowledged_is_there_after_a_sigkill_and_what_waited_goes_on(
    node: Node, database: Database
) -> None:
    store = database.address()
    flag = node.directory / "flag"
    server = node.serve(PROGRAM, "--store", store)
    assert add(node, "ada", 2, store) == 2
    assert add(node, "ada", 3, store) == 5
    words = ("actors", "call", "Counter/ada", "tell", f'{{"other": "bob", "flag": "{flag}"}}')
    node.ok(*words, KELPIE_STORE=store)
    server.process.send(signal.SIGKILL)
    eventually(lambda: server.process.status is not None, within_s=GONE_S, what="its end")
    flag.touch()
    server = node.serve(PROGRAM, "--store", store)
    assert add(node, "ada", 1, store) == 6

    def total_of_bob() -> bool:
        asked = node.ok("actors", "call", "Counter/bob", "total", KELPIE_STORE=store)
        return bool(asked["result"] == 1)

    eventually(total_of_bob, within_s=GONE_S, what="the message that waited to arrive")
    stats = server.stats()
    assert (stats["actors"], stats["outbox"], stats["held"]) == (2, 0, False)
    assert server.get("/v1/audit/verify")["ok"]
    checked = node.cli("store", "check", KELPIE_STORE=store)
    assert checked.status == 0, checked.err


def test_another_machine_takes_over_once_the_lease_of_a_dead_node_has_ended(
    node: Node, tmp_path: Path, database: Database
) -> None:
    store = database.address()
    server = node.serve(PROGRAM, "--store", store, KELPIE_NODE="one")
    assert add(node, "ada", 2, store) == 2
    server.process.send(signal.SIGKILL)
    eventually(lambda: server.process.status is not None, within_s=GONE_S, what="its end")
    (tmp_path / "other").mkdir()
    other = Node(tmp_path / "other")
    try:
        other.serve(PROGRAM, "--store", store, KELPIE_NODE="two")
        assert add(other, "ada", 3, store) == 5
    finally:
        other.close()


def test_a_node_that_stops_in_order_lets_the_next_one_begin_at_once(
    node: Node, database: Database
) -> None:
    store = database.address()
    server = node.serve(PROGRAM, "--store", store)
    assert add(node, "ada", 2, store) == 2
    server.process.send(signal.SIGTERM)
    eventually(lambda: server.process.status is not None, within_s=GONE_S, what="its end")
    assert server.process.status == 0, server.process.err
    # Without a server the command opens the store itself.
    stats = node.ok("store", "stats", KELPIE_STORE=store)
    assert (stats["actors"], stats["held"]) == (1, False)


def test_two_servers_of_one_machine_need_two_names(node: Node, database: Database) -> None:
    store = database.address()
    node.serve(PROGRAM, "--store", store)
    second = node.cli("serve", "--port", "1", "--store", store, "--json")
    assert second.error["code"] == "store_held"
    assert second.status == HELD, second.err
    assert "KELPIE_NODE" in second.error["message"]


def test_a_server_survives_a_restart_of_its_database(node: Node) -> None:
    database = make_server()
    database.start()
    try:
        store = database.dsn("postgres")
        server = node.serve(PROGRAM, "--store", store)
        assert add(node, "ada", 2, store) == 2
        database.stop()
        database.start()

        def goes_on() -> bool:
            words = ("actors", "call", "Counter/ada", "add", '{"amount": 1}', "--key", "k")
            return node.cli(*words, KELPIE_STORE=store).out == "3\n"

        eventually(goes_on, within_s=GONE_S, what="the server to write again")
        assert server.process.status is None
    finally:
        database.stop()


def test_a_password_is_shown_nowhere(node: Node, database: Database) -> None:
    asyncio.run(make_guarded_role(database.server))
    store = database.address(role=GUARDED, password=PASSWORD)
    server = node.serve(PROGRAM, KELPIE_STORE=store)
    said = [node.cli("config", "show", *more, KELPIE_STORE=store) for more in ([], ["--origin"])]
    said += [node.cli("doctor", *more, KELPIE_STORE=store) for more in ([], ["--json"])]
    server.process.send(signal.SIGTERM)
    eventually(lambda: server.process.status is not None, within_s=GONE_S, what="its end")
    wrong = database.address(role=GUARDED, password=PASSWORD + "x")
    refused = node.cli("serve", "--json", "--store", wrong)
    assert refused.error["code"] == "invalid_setting", refused.err
    said.append(refused)
    texts = [text for done in said for text in (done.out, done.err)]
    texts += [server.process.out, server.process.err]
    assert f"{GUARDED}:***@127.0.0.1" in said[0].out
    assert [text for text in texts if PASSWORD in text] == []


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("postgresql://kelpie@127.0.0.1:{port}/nowhere", "no such database"),
        ("postgresql://kelpie@127.0.0.1:1/kelpie", "cannot be reached"),
        ("postgresql://kelpie@127.0.0.1:{port}", "must name a database"),
        ("mysql://kelpie@127.0.0.1/kelpie", "must be a path"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused_in_words(
    node: Node, address: str, problem: str
) -> None:
    store = address.format(port=shared_server().port)
    done = node.cli("serve", "--json", "--store", store)
    assert problem in done.error["message"]
    assert done.status != 0
    assert not list(node.data.glob("**/*.session"))


def test_a_database_that_may_lose_commits_is_refused(node: Node) -> None:
    server: PostgresServer = make_server()
    (server.folder / "data" / "postgresql.auto.conf").write_text("full_page_writes = off\n")
    server.start()
    try:
        done = node.cli("serve", "--json", "--store", server.dsn("postgres"))
        assert done.status == CONFIG, done.err
        assert "full_page_writes = off" in done.error["message"]
    finally:
        server.stop()
