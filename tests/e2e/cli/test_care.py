"""Care of a store from the command line: look, check, back up, restore, release, settle."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from kelpie import __version__
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, call, conversation, on
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

INPUT, CONFLICT, HELD = 2, 5, 73
NAP = ["sleep", "20"]


@pytest.mark.covers("kelpie version", "kelpie config show")
def test_the_version_and_the_settings_say_where_they_come_from(node: Node) -> None:
    assert node.ok("version") == {"version": __version__}
    assert node.cli("version").out == f"kelpie {__version__}\n"
    (node.directory / "kelpie.toml").write_text("[server]\nport = 9999\n", encoding="utf-8")
    shown = node.ok("config", "show", "--origin", KELPIE_LOG="debug")
    assert shown["server.port"]["value"] == 9999
    assert "kelpie.toml" in shown["server.port"]["origin"]
    assert shown["log.level"] == {"value": "debug", "origin": "environment KELPIE_LOG"}
    assert "port = 9999" in node.cli("config", "show").out
    (node.directory / "kelpie.toml").write_text("[server]\nprot = 1\n", encoding="utf-8")
    wrong = node.cli("config", "show", "--json")
    assert (wrong.status, wrong.error["code"]) == (INPUT, "invalid_setting")
    assert "prot" in wrong.error["message"]


@pytest.mark.covers("kelpie doctor")
def test_the_doctor_tries_everything_and_the_gate_holds(node: Node) -> None:
    node.script(*conversation(), models=["gpt-5-mini"])
    server = node.serve()
    done = node.cli("doctor", "--json", KELPIE_SERVER_PORT=str(server.port))
    found = {check["name"]: check for check in done.json}
    assert done.status == 0, found
    assert found["gate"]["detail"] == "a red effect waited, was denied, and changed nothing"
    assert {check["status"] for check in found.values()} <= {"ok", "warn"}
    assert found["store"]["detail"].endswith(f"held by process {server.process.pid}")
    assert found["model"]["status"] == "ok"
    assert found["sandbox bubblewrap"]["status"] == "ok"
    server.process.end()
    ill = node.cli("doctor", OPENAI_BASE_URL=server.url)
    assert ill.status == 1
    assert "fail  model" in ill.out


@pytest.mark.covers(
    "kelpie store stats", "kelpie store check", "kelpie store compact", "kelpie audit verify"
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside a server", "alone"])
def test_a_store_is_measured_and_checked(node: Node, beside: bool) -> None:
    node.script(*conversation())
    if beside:
        node.serve()
    node.ok("agents", "create", "ada", "--model", "openai/scripted")
    node.ok("messages", "send", "ada", "hello")
    assert node.ok("store", "stats")["actors"] == 1
    assert node.ok("store", "check") == {"ok": True, "problems": [], "damaged": []}
    compacted = node.ok("store", "compact")
    assert 0 < compacted["after_bytes"] <= compacted["before_bytes"]
    verified = node.ok("audit", "verify")
    assert verified["ok"]
    assert verified["records"] == 4
    assert verified["unproven"]


def test_a_store_that_was_tampered_with_is_found_out(node: Node) -> None:
    node.script(*conversation())
    node.ok("agents", "create", "ada", "--model", "openai/scripted")
    node.ok("messages", "send", "ada", "hello")
    path = node.data / "kelpie.db"
    content = path.read_bytes()
    assert content.count(b"agent.created") >= 1
    path.write_bytes(content.replace(b"agent.created", b"agent.deleted"))
    verified = node.cli("audit", "verify", "--json")
    assert verified.status == 1, verified.err
    assert not verified.json["ok"]
    assert verified.json["problem"]


@pytest.mark.requirement("STORE-BLOBS")
def test_compacting_leaves_what_a_waiting_question_needs(node: Node) -> None:
    node.script(*conversation())
    node.serve()
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    node.ok("agents", "create", "ada", "--workspace", "workspace")
    assert node.cli("messages", "send", "ada", "write").status == 3
    root = node.data / "kelpie.db.blobs"
    blobs = list(root.glob("??/*"))
    assert blobs
    unnamed = root / "00" / ("0" * 64)
    unnamed.parent.mkdir(exist_ok=True)
    unnamed.write_bytes(b"named by nothing")
    for path in (*blobs, unnamed):
        os.utime(path, (0, 0))
    assert node.ok("store", "compact")["blobs_removed"] == 1
    assert not unnamed.exists()
    (waiting,) = node.ok("approvals", "list")
    node.ok("approvals", "approve", waiting["effect_id"])
    eventually(lambda: (node.workspace / FILE).read_text() == AFTER, within_s=10, what="the write")


@pytest.mark.covers("kelpie backup", "kelpie restore", "kelpie store release")
@pytest.mark.requirement("RESTORE-HELD")
def test_a_backup_beside_a_server_restores_held_and_goes_on_when_released(node: Node) -> None:
    node.script(*conversation())
    server = node.serve()
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    agent_id = node.ok("agents", "create", "ada", "--workspace", "workspace")["id"]
    node.ok("messages", "send", "ada", "hello")
    assert node.cli("messages", "send", "ada", "write").status == 3
    node.ok("backup", "backup")
    twice = node.cli("backup", "backup", "--json")
    assert (twice.status, twice.error["code"]) == (CONFLICT, "conflict")
    busy = node.cli("restore", "backup", "--json")
    assert (busy.status, busy.error["code"]) == (HELD, "store_held")
    server.process.kill()
    node.data = node.directory / "restored"
    assert node.ok("restore", "backup")["held"]
    held = node.serve()
    assert json.loads(held.process.out)["held"]
    refused = node.cli("messages", "send", "ada", "hello", "--json")
    assert refused.status == CONFLICT, "it waits for an approval, and that comes first"
    node.ok("agents", "create", "bob")
    refused = node.cli("messages", "send", "bob", "hello", "--json")
    assert (refused.status, refused.error["next"]) == (HELD, "kelpie store release")
    (waiting,) = node.ok("approvals", "list")
    node.ok("approvals", "approve", waiting["effect_id"])
    assert held.stats()["effects_open"] == 1
    assert (node.workspace / FILE).read_text() == BEFORE
    assert node.ok("store", "release") == {"held": False}
    eventually(
        lambda: (
            node.ok("agents", "show", agent_id)["last_stop_reason"] == "end_turn"
            and held.stats()["effects_open"] == 0
        ),
        within_s=10,
        what="the run to go on after the release",
    )
    assert (node.workspace / FILE).read_text() == AFTER
    assert node.ok("messages", "list", "ada")[-1]["content"] == "That is done."
    assert node.ok("audit", "verify")["ok"]


@pytest.mark.covers("kelpie effects resolve", "POST /v1/effects/{id}/resolve")
@pytest.mark.requirement("RESTORE-HELD")
def test_what_ran_when_the_copy_was_taken_is_unknown_until_a_person_settles_it(node: Node) -> None:
    node.script(on("nap", tool_calls=[call("run_command", argv=NAP)]), *conversation())
    server = node.serve()
    node.ok("agents", "create", "ada", "--workspace", "workspace")
    node.cli("messages", "send", "ada", "nap")
    (waiting,) = node.ok("approvals", "list")
    effect_id = waiting["effect_id"]
    node.ok("approvals", "approve", effect_id)

    def state() -> Any:
        return node.ok("effects", "show", effect_id)["state"]

    eventually(lambda: state() == "started", within_s=10, what="the command to run")
    node.ok("backup", "backup")
    server.process.kill()
    node.data = node.directory / "restored"
    node.ok("restore", "backup")
    restored = node.serve()
    (unknown,) = node.ok("effects", "list", "--state", "unknown")
    assert unknown["effect_id"] == effect_id
    unsaid = node.cli("effects", "resolve", effect_id, "--reason", "seen")
    assert unsaid.status == 64
    resolved = node.ok("effects", "resolve", effect_id, "--done", "--reason", "I looked")
    assert resolved["state"] == "done"
    again = node.cli("effects", "resolve", effect_id, "--failed", "--reason", "no", "--json")
    assert again.status == CONFLICT
    kinds = [
        (record["kind"], record["principal"])
        for record in restored.get("/v1/audit", limit=1000)["records"]
        if record["body"].get("effect_id") == effect_id
    ]
    assert kinds[-1][0] == "effect.done"
    assert kinds[-1][1] != "system:dispatcher"


@pytest.mark.covers("kelpie store accept-loss")
@pytest.mark.requirement("STORE-LOG")
def test_a_store_without_its_log_is_refused_until_a_person_accepts_the_loss(node: Node) -> None:
    node.script(*conversation())
    server = node.serve()
    node.ok("agents", "create", "ada", "--model", "openai/scripted")
    server.process.kill()
    (node.data / "kelpie.db-wal").unlink()
    refused = node.cli("agents", "list", "--json")
    assert (refused.status, refused.error["code"]) == (74, "store_log_missing")
    assert refused.error["next"] == "kelpie store accept-loss"
    accepted = node.ok("store", "accept-loss")
    assert accepted["held"]
    assert accepted["lost_after"]
    assert node.ok("agents", "list") == []
    assert node.ok("store", "stats")["held"]
    assert node.ok("store", "accept-loss")["lost_after"] is None
    assert node.ok("store", "release") == {"held": False}


def test_a_damaged_backup_makes_no_store(node: Node) -> None:
    node.ok("agents", "create", "ada", "--model", "openai/scripted")
    node.ok("backup", "backup")
    copy = node.directory / "backup"
    for path in (each for each in copy.rglob("*.db") if each.is_file()):
        path.write_bytes(path.read_bytes()[:-4096])
    node.data = node.directory / "restored"
    refused = node.cli("restore", "backup", "--json")
    assert (refused.status, refused.error["code"]) == (74, "store_corrupt")
    assert not (node.data / "kelpie.db").exists()
    shutil.rmtree(copy)
    missing = node.cli("restore", "backup", "--json")
    assert (missing.status, missing.error["code"]) == (4, "not_found")
