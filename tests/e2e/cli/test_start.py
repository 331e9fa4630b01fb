"""A start is all or nothing: what cannot serve leaves nothing listening and nothing half made."""

from __future__ import annotations

import socket
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.support.node import free_port, listens

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.support.node import Done, Node

INPUT, UNAVAILABLE, HELD, DISK, OPTIMIZED = 2, 69, 73, 74, 78


def start(node: Node, *words: str, **environment: str) -> tuple[Done, int]:
    """A start that must fail, and the port that it was to take."""
    port = free_port()
    done = node.cli("serve", "--port", str(port), "--json", *words, **environment)
    assert done.out == "", done.out
    assert not listens(port)
    return done, port


@pytest.mark.covers("kelpie serve")
@pytest.mark.requirement("START-WHOLE")
def test_a_port_that_is_taken_is_named_and_the_store_stays_sound(node: Node) -> None:
    node.ok("agents", "create", "ada", "--model", "openai/scripted")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = node.cli("serve", "--port", port, "--json")
    assert (done.status, done.out) == (UNAVAILABLE, "")
    assert done.error["code"] == "unavailable"
    assert port in done.error["message"]
    assert list(node.data.glob("*.sock")) == []
    assert node.ok("store", "check")["ok"]
    assert [agent["name"] for agent in node.ok("agents", "list")] == ["ada"]


def test_a_first_start_that_fails_leaves_no_half_made_store(node: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert node.cli("serve", "--port", port, "--json").status == UNAVAILABLE
    assert list(node.data.glob("*.sock")) == []
    assert node.ok("store", "check") == {"ok": True, "problems": [], "damaged": []}
    assert node.serve().get("/v1/agents") == []


def test_a_data_directory_that_cannot_be_written_is_named(node: Node) -> None:
    blocker = node.directory / "a-file"
    blocker.write_text("not a directory", encoding="utf-8")
    done, _ = start(node, "--data-dir", str(blocker / "data"))
    assert done.status == DISK
    assert str(blocker) in done.error["message"]
    assert blocker.read_text(encoding="utf-8") == "not a directory"


def test_an_address_beyond_loopback_needs_a_key(node: Node) -> None:
    done, _ = start(node, "--host", "0.0.0.0")
    assert (done.status, done.error["code"]) == (INPUT, "invalid_setting")
    assert "server.host" in done.error["message"]
    assert not node.data.exists()


def test_with_a_key_every_caller_must_show_it(node: Node) -> None:
    server = node.serve("--host", "127.0.0.1", KELPIE_API_KEY="open sesame")
    refused = server.ask("GET", "/v1/agents")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
    headers = {"authorization": "Bearer open sesame"}
    assert server.ask("GET", "/v1/agents", headers=headers).status_code == 200
    assert server.get("/v1/health")["status"] == "ok"
    away: dict[str, Any] = {"KELPIE_URL": server.url}
    assert node.cli("agents", "list", **away).status == 6
    assert node.ok("agents", "list", KELPIE_API_KEY="open sesame", **away) == []


def test_an_optimizing_interpreter_is_refused(node: Node) -> None:
    port = free_port()
    process = node.run([sys.executable, "-O", "-m", "kelpie.cli", "serve", "--port", str(port)])
    assert process.wait() == OPTIMIZED
    assert "assertions" in process.err
    assert not listens(port)
    assert not node.data.exists()


def test_a_second_server_on_the_store_says_who_holds_it(node: Node) -> None:
    first = node.serve()
    done, _ = start(node)
    assert (done.status, done.error["code"]) == (HELD, "store_held")
    assert str(first.process.pid) in done.error["message"]
    assert done.error["fields"]["pid"] == first.process.pid
    assert first.get("/v1/health")["status"] == "ok"
    assert node.ok("agents", "list") == []


def test_a_store_of_a_newer_program_is_left_alone(node: Node) -> None:
    node.ok("agents", "create", "ada", "--model", "openai/scripted")
    make_newer(node.data / "kelpie.db")
    before = (node.data / "kelpie.db").read_bytes()
    done, _ = start(node)
    assert (done.status, done.error["code"]) == (HELD, "store_version")
    assert (node.data / "kelpie.db").read_bytes() == before


def make_newer(path: Path) -> None:
    """Marks a store as one of a later program."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 999")
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
