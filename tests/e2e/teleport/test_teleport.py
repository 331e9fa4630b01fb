"""Agents that move between two stores as files, from the command line."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

INPUT, MISSING, CONFLICT, DAMAGED = 2, 4, 5, 74


def make_agent(node: Node) -> str:
    """An agent with a conversation, a workspace, and a question that waits for a person."""
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    (node.workspace / "deep" / "er").mkdir(parents=True)
    (node.workspace / "deep" / "er" / "run.sh").write_text("#!/bin/sh\n", encoding="utf-8")
    (node.workspace / "deep" / "er" / "run.sh").chmod(0o755)
    (node.workspace / "link").symlink_to("/nowhere/at/all")
    agent_id = str(node.ok("agents", "create", "ada", "--workspace", "workspace")["id"])
    node.ok("messages", "send", "ada", "hello")
    assert node.cli("messages", "send", "ada", "write").status == 3
    return agent_id


def go_elsewhere(node: Node) -> Path:
    """Lets the node's commands use another, empty store, and returns the one so far."""
    before = node.data
    node.data = node.directory / "elsewhere"
    return before


def texts_of(node: Node, agent_id: str) -> list[Any]:
    return [(row["message_type"], row["id"]) for row in node.ok("messages", "list", agent_id)]


@pytest.mark.covers(
    "kelpie teleport export",
    "kelpie teleport import",
    "kelpie teleport release",
    "kelpie teleport confirm",
    "kelpie teleport list",
    "POST /v1/teleport/export",
    "POST /v1/teleport/import",
    "POST /v1/teleport/release",
    "POST /v1/teleport/confirm",
    "GET /v1/teleport/exports",
)
@pytest.mark.requirement("TELEPORT-WHOLE")
@pytest.mark.parametrize("beside", [True, False], ids=["beside a server", "alone"])
def test_an_agent_moves_with_its_conversation_and_its_question(node: Node, beside: bool) -> None:
    node.script(*conversation())
    source = node.serve() if beside else None
    agent_id = make_agent(node)
    said = texts_of(node, agent_id)
    exported = node.ok("teleport", "export", "ada", "--to", "ada.kelpie")
    assert exported["left_out"] == []
    package = node.directory / "ada.kelpie"
    assert stat.S_IMODE(package.stat().st_mode) == 0o600
    (sealed,) = node.ok("teleport", "list")
    assert (sealed["state"], sealed["package"]) == ("sealed", exported["package"])
    refused = node.cli("messages", "send", agent_id, "hello", "--json")
    assert (refused.status, refused.error["code"]) == (CONFLICT, "actor_moved")
    assert "ada.kelpie" in refused.error["message"]
    assert node.ok("agents", "list") == []
    before = go_elsewhere(node)
    target = node.serve() if beside else None
    asked = node.cli("teleport", "import", "ada.kelpie", "--workspace", "moved", "--json")
    assert (asked.status, asked.error["code"]) == (CONFLICT, "conflict"), "its question names it"
    assert node.ok("teleport", "import", "ada.kelpie")["package"] == exported["package"]
    assert texts_of(node, agent_id) == said
    twice = node.cli("teleport", "import", "ada.kelpie", "--json")
    assert (twice.status, twice.error["code"]) == (CONFLICT, "conflict")
    (waiting,) = node.ok("approvals", "list")
    node.ok("teleport", "release", agent_id)
    target = target or node.serve()
    node.ok("approvals", "approve", waiting["effect_id"])
    path = node.workspace / FILE
    eventually(lambda: path.read_text() == AFTER, within_s=20, what="the write")
    node.ok("messages", "send", agent_id, "hello")
    target.process.end()
    node.data = before
    node.ok("teleport", "confirm", agent_id, "--yes")
    if source is not None:
        assert source.stats()["actors"] == 0
    gone = node.cli("messages", "send", agent_id, "hello", "--json")
    assert gone.error["code"] == "actor_moved", gone.err
    assert node.ok("store", "check")["ok"]


@pytest.mark.requirement("TELEPORT-WHOLE")
def test_a_workspace_moves_to_another_directory_file_by_file(node: Node) -> None:
    node.script(*conversation())
    agent_id = make_agent(node)
    (waiting,) = node.ok("approvals", "list")
    server = node.serve()
    node.ok("approvals", "deny", waiting["effect_id"])
    eventually(lambda: server.stats()["effects_open"] == 0, within_s=20, what="the run's end")
    node.ok("teleport", "export", agent_id, "--to", "ada.kelpie")
    (node.directory / "taken").mkdir()
    (node.directory / "taken" / "mine").write_text("mine", encoding="utf-8")
    go_elsewhere(node)
    for place, code in (("taken", "conflict"), ("no/where", "not_found")):
        refused = node.cli("teleport", "import", "ada.kelpie", "--workspace", place, "--json")
        assert refused.error["code"] == code, refused.err
    outside = node.cli("teleport", "import", "ada.kelpie", "--workspace", "/tmp/x", "--json")
    assert outside.error["code"] == "invalid_field"
    node.ok("teleport", "import", "ada.kelpie", "--workspace", "moved")
    moved = node.directory / "moved"
    assert (moved / FILE).read_text(encoding="utf-8") == BEFORE
    assert os.access(moved / "deep" / "er" / "run.sh", os.X_OK)
    assert str((moved / "link").readlink()) == "/nowhere/at/all"
    node.ok("teleport", "release", agent_id)
    assert node.ok("agents", "show", agent_id)["workspace"] == str(moved)


@pytest.mark.covers("kelpie teleport abort", "POST /v1/teleport/abort")
@pytest.mark.requirement("TELEPORT-SEALED")
def test_an_export_that_is_taken_back_goes_on_after_a_restart_too(node: Node) -> None:
    node.script(*conversation())
    agent_id = make_agent(node)
    node.ok("teleport", "export", agent_id, "--to", "ada.kelpie")
    again = node.ok("teleport", "export", agent_id, "--to", "again.kelpie")
    (sealed,) = node.ok("teleport", "list")
    assert sealed["package"] == again["package"]
    server = node.serve()
    refused = node.cli("messages", "send", agent_id, "hello", "--json")
    assert refused.error["code"] == "actor_moved"
    assert node.ok("teleport", "abort", agent_id)["state"] == "open"
    assert node.cli("teleport", "abort", agent_id, "--json").status == MISSING
    (waiting,) = node.ok("approvals", "list")
    node.ok("approvals", "approve", waiting["effect_id"])
    path = node.workspace / FILE
    eventually(lambda: path.read_text() == AFTER, within_s=20, what="the write")
    assert server.stats()["actors"] == 1


@pytest.mark.requirement("TELEPORT-WHOLE")
def test_a_checkpoint_is_a_copy_and_its_source_goes_on(node: Node) -> None:
    node.script(*conversation())
    node.serve()
    agent_id = make_agent(node)
    copied = node.ok("teleport", "export", "ada", "--checkpoint", "--to", "ada.kelpie")
    assert copied["kind"] == "checkpoint"
    assert node.ok("teleport", "list") == []
    (waiting,) = node.ok("approvals", "list")
    node.ok("approvals", "deny", waiting["effect_id"])
    here = node.cli("teleport", "import", "ada.kelpie", "--json")
    assert (here.status, here.error["code"]) == (CONFLICT, "conflict")
    go_elsewhere(node)
    assert node.ok("teleport", "import", "ada.kelpie")["actor"] == f"agent/{agent_id}"
    assert len(node.ok("approvals", "list")) == 1


@pytest.mark.covers("kelpie secrets init", "kelpie secrets rotate", "kelpie secrets show-recipient")
@pytest.mark.requirement("SECRETS-ROTATE")
def test_a_package_is_for_its_recipients_whatever_was_rotated_since(node: Node) -> None:
    node.script(*conversation())
    agent_id = make_agent(node)
    before = go_elsewhere(node)
    first = node.ok("secrets", "init")["recipient"]
    assert stat.S_IMODE((node.data / "identity.age").stat().st_mode) == 0o600
    assert node.cli("secrets", "init", "--json").status == CONFLICT
    elsewhere, node.data = node.data, before
    node.ok("teleport", "export", agent_id, "--to", "ada.age", "--recipient", first)
    package = node.directory / "ada.age"
    assert package.read_bytes().startswith(b"age-encryption.org/v1")
    assert b"ada" not in package.read_bytes()[:4_000]
    wrong = node.cli("teleport", "export", agent_id, "--to", "x", "--recipient", "me", "--json")
    assert (wrong.status, wrong.error["code"]) == (INPUT, "invalid_field")
    assert not (node.directory / "x").exists()
    node.data = node.directory / "stranger"
    unread = node.cli("teleport", "import", "ada.age", "--json")
    assert (unread.status, unread.error["code"]) == (MISSING, "not_found")
    node.ok("secrets", "init")
    unread = node.cli("teleport", "import", "ada.age", "--json")
    assert (unread.status, unread.error["code"]) == (DAMAGED, "store_corrupt")
    node.data = elsewhere
    second = node.ok("secrets", "rotate")["recipient"]
    assert node.ok("secrets", "show-recipient")["recipient"] == second != first
    assert node.ok("teleport", "import", "ada.age")["actor"] == f"agent/{agent_id}"


@pytest.mark.requirement("TELEPORT-HOSTILE")
def test_a_damaged_package_changes_nothing(node: Node) -> None:
    node.script(*conversation())
    agent_id = make_agent(node)
    node.ok("teleport", "export", agent_id, "--to", "ada.kelpie")
    whole = (node.directory / "ada.kelpie").read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "longer": whole + b"x",
        "empty": b"",
    }
    go_elsewhere(node)
    for name, content in damaged.items():
        (node.directory / name).write_bytes(content)
        refused = node.cli("teleport", "import", name, "--json")
        assert (refused.status, refused.error["code"]) == (DAMAGED, "store_corrupt"), name
    assert node.ok("agents", "list") == []
    assert node.ok("teleport", "import", "ada.kelpie")
    assert list((node.data / "packages").iterdir()) == []


@pytest.mark.requirement("TELEPORT-SEALED")
def test_a_killed_export_leaves_the_agent_in_one_place(node: Node) -> None:
    node.script(*conversation())
    server = node.serve()
    agent_id = make_agent(node)
    (node.workspace / "large").write_bytes(os.urandom(1 << 20) * 64)
    exporting = node.kelpie("teleport", "export", agent_id, "--to", "ada.kelpie")
    eventually(lambda: any((node.data / "packages").glob("*/*")), within_s=30, what="the packing")
    server.process.send(signal.SIGKILL)
    eventually(lambda: exporting.status is not None, within_s=30, what="the command's end")
    assert not (node.directory / "ada.kelpie").exists()
    (sealed,) = node.ok("teleport", "list")
    assert sealed["state"] == "sealed"
    node.ok("teleport", "export", agent_id, "--to", "ada.kelpie")
    go_elsewhere(node)
    (node.workspace / "large").unlink()
    changed = node.cli("teleport", "import", "ada.kelpie", "--json")
    assert (changed.status, changed.error["code"]) == (CONFLICT, "conflict")
    node.workspace.rename(node.directory / "away")
    assert node.ok("teleport", "import", "ada.kelpie")["held"]
    assert (node.workspace / "large").stat().st_size == 64 << 20


@pytest.mark.requirement("SECRETS-ROTATE")
def test_an_encrypted_backup_is_one_file_that_its_identity_restores(node: Node) -> None:
    node.script(*conversation())
    node.serve()
    agent_id = make_agent(node)
    unable = node.cli("backup", "backup.age", "--encrypt", "--json")
    assert (unable.status, unable.error["code"]) == (MISSING, "not_found")
    node.ok("secrets", "init")
    node.ok("backup", "backup.age", "--encrypt")
    said = texts_of(node, agent_id)
    identity = node.data / "identity.age"
    assert (node.directory / "backup.age").read_bytes().startswith(b"age-encryption.org/v1")
    assert list((node.data / "packages").iterdir()) == []
    node.data = node.directory / "restored"
    assert node.cli("restore", "backup.age", "--json").status == MISSING
    node.data.mkdir(exist_ok=True)
    (node.data / "identity.age").write_bytes(identity.read_bytes())
    assert node.ok("restore", "backup.age")["held"]
    assert texts_of(node, agent_id) == said
    assert node.ok("store", "check")["ok"]
