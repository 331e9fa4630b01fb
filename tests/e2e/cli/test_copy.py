"""Copying a whole store from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

MISSING, CONFLICT, HELD = 4, 5, 73


@pytest.mark.covers("kelpie store copy")
@pytest.mark.requirement("COPY-ONE-OPEN")
def test_a_copy_takes_over_held_and_its_source_is_closed(node: Node) -> None:
    node.script(*conversation())
    server = node.serve()
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    agent_id = node.ok("agents", "create", "ada", "--workspace", "workspace")["id"]
    node.ok("messages", "send", "ada", "hello")
    assert node.cli("messages", "send", "ada", "write").status == 3
    said = node.ok("messages", "list", agent_id)
    source, target = f"sqlite:{node.data}/kelpie.db", "sqlite:copied/kelpie.db"
    busy = node.cli("store", "copy", source, target, "--json")
    assert (busy.status, busy.error["code"]) == (HELD, "store_held")
    server.process.end()
    missing = node.cli("store", "copy", "sqlite:nowhere.db", target, "--json")
    assert (missing.status, missing.error["code"]) == (MISSING, "not_found")
    copied = node.ok("store", "copy", source, target)
    assert copied["held"]
    assert copied["rows"] > 0
    again = node.ok("store", "copy", source, target)
    assert again["was_resumed"]
    closed = node.cli("agents", "list", "--json")
    assert (closed.status, closed.error["code"]) == (HELD, "store_sealed")
    elsewhere = node.cli("store", "copy", source, "sqlite:other.db", "--json")
    assert (elsewhere.status, elsewhere.error["code"]) == (CONFLICT, "conflict")
    node.data = node.directory / "copied"
    assert node.ok("messages", "list", agent_id) == said
    assert node.ok("store", "check")["ok"]
    assert node.ok("audit", "verify")["ok"]
    assert node.ok("store", "stats")["held"]
    node.serve()
    node.ok("store", "release")
    (waiting,) = node.ok("approvals", "list")
    node.ok("approvals", "approve", waiting["effect_id"])
    path = node.workspace / FILE
    eventually(lambda: path.read_text() == AFTER, within_s=20, what="the write")
