"""Agents, messages, approvals, effects and events from the command line.

Every command is tried twice: beside a running server, through its socket, and without one, where
the command opens the store itself.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.node import Node
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNKNOWN = "agent-00000000-0000-4000-8000-000000000000"
BAD_INPUT, WAITING, MISSING, CONFLICT, USAGE = 2, 3, 4, 5, 64


@pytest.fixture(scope="module", params=["beside a server", "alone"])
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node with a model; with a server or without one."""
    directory: Path = tmp_path_factory.mktemp("node")
    made = Node(directory)
    made.script(*conversation())
    if request.param != "alone":
        made.serve()
    yield made
    made.close()


def create(node: Node, name: str) -> str:
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    return str(node.ok("agents", "create", name, "--workspace", "workspace")["id"])


@pytest.mark.covers(
    "kelpie agents create", "kelpie agents list", "kelpie agents show", "kelpie agents delete"
)
def test_an_agent_is_made_shown_listed_and_deleted(node: Node) -> None:
    agent_id = create(node, "ada")
    shown = node.ok("agents", "show", "ada")
    assert (shown["id"], shown["workspace"]) == (agent_id, str(node.workspace))
    assert node.ok("agents", "show", agent_id) == shown
    assert agent_id in [row["id"] for row in node.ok("agents", "list")]
    unsure = node.cli("agents", "delete", "ada")
    assert unsure.status == USAGE
    assert "--yes" in unsure.err
    assert node.ok("agents", "delete", "ada", "--yes") == {"id": agent_id, "deleted": True}
    gone = node.cli("agents", "show", "ada", "--json")
    assert (gone.status, gone.out) == (MISSING, "")
    assert gone.error["code"] == "not_found"
    assert gone.error["next"] == "kelpie agents list"


@pytest.mark.covers("kelpie agents update")
def test_an_agent_gets_another_model_and_only_one_that_can_be_asked(node: Node) -> None:
    agent_id = create(node, "changer")
    changed = node.ok("agents", "update", "changer", "--model", "openai/other")
    assert (changed["id"], changed["model"]) == (agent_id, "openai/other")
    refused = node.cli("agents", "update", agent_id, "--model", "nowhere/x")
    assert refused.status == BAD_INPUT
    assert "the configured ones are: openai" in refused.err
    assert node.ok("agents", "show", agent_id)["model"] == "openai/other"
    again = node.cli("agents", "create", "changer")
    assert again.status == 0
    assert f"({agent_id})" in again.err


def test_output_for_people_goes_the_same_ways(node: Node) -> None:
    agent_id = node.cli("agents", "create", "grace").out.strip()
    listed = node.cli("agents", "list")
    assert listed.status == 0
    assert agent_id in listed.out
    assert listed.err == ""
    missing = node.cli("agents", "show", UNKNOWN)
    assert (missing.status, missing.out) == (MISSING, "")
    assert UNKNOWN in missing.err
    wrong = node.cli("agents", "lst")
    assert (wrong.status, wrong.out) == (USAGE, "")


@pytest.mark.covers("kelpie messages send", "kelpie messages list")
def test_a_message_gets_its_answer_and_both_are_listed(node: Node) -> None:
    create(node, "talker")
    answer = node.ok("messages", "send", "talker", "hello")
    assert answer["messages"][-1]["content"] == "Hello to you."
    streamed = node.cli("messages", "send", "talker", "-", "--stream", "--json", text="hello")
    assert streamed.status == 0, streamed.err
    kinds = [json.loads(line)["message_type"] for line in streamed.out.splitlines()]
    assert kinds == ["assistant_message", "stop_reason", "usage_statistics"]
    listed = node.ok("messages", "list", "talker")
    assert [row["content"] for row in listed] == ["hello", "Hello to you."] * 2
    after = node.ok("messages", "list", "talker", "--after", listed[1]["id"])
    assert after == listed[2:]


@pytest.mark.covers(
    "kelpie approvals list",
    "kelpie approvals show",
    "kelpie approvals approve",
    "kelpie effects list",
    "kelpie effects show",
)
def test_a_card_is_shown_and_a_yes_is_carried_out(node: Node) -> None:
    agent_id = create(node, "writer")
    sent = node.cli("messages", "send", "writer", "write", "--json")
    assert sent.status == WAITING, sent.err
    assert sent.json["stop_reason"]["stop_reason"] == "requires_approval"
    waiting = [r for r in node.ok("approvals", "list") if r["actor"] == f"agent/{agent_id}"]
    effect_id = waiting[0]["effect_id"]
    assert node.ok("approvals", "show", effect_id) == waiting[0]
    card = node.cli("approvals", "show", effect_id)
    assert "-before" in card.out
    assert "+after" in card.out
    wrong = node.cli("approvals", "approve", effect_id, "--digest", "sha256:0", "--json")
    assert wrong.status == CONFLICT
    approved = node.ok("approvals", "approve", effect_id, "--digest", waiting[0]["digest"])
    assert approved["state"] == "approved"
    twice = node.cli("approvals", "approve", effect_id, "--json")
    assert twice.status == CONFLICT
    assert twice.error["code"] == "already_decided"
    # Alone, an approval is recorded only; the next command that drives carries it out.
    node.cli("messages", "send", "writer", "hello", "--json")
    eventually(
        lambda: node.ok("effects", "show", effect_id)["state"] == "done",
        within_s=10,
        what="the write to be done",
    )
    assert (node.workspace / FILE).read_text() == AFTER
    done = node.ok("effects", "list", "--actor", f"agent/{agent_id}", "--state", "done")
    assert effect_id in [row["effect_id"] for row in done]


@pytest.mark.covers("kelpie approvals deny")
def test_a_no_changes_nothing(node: Node) -> None:
    agent_id = create(node, "denied")
    assert node.cli("messages", "send", "denied", "write").status == WAITING
    waiting = [r for r in node.ok("approvals", "list") if r["actor"] == f"agent/{agent_id}"]
    denied = node.ok("approvals", "deny", waiting[0]["effect_id"], "--reason", "no")
    assert denied["state"] == "denied"
    assert (node.workspace / FILE).read_text() == BEFORE
    missing = node.cli("approvals", "deny", "effect-nothing", "--json")
    assert missing.status == MISSING


@pytest.mark.covers("kelpie events tail")
def test_events_are_printed_oldest_first_as_json_lines(node: Node) -> None:
    agent_id = create(node, "tailed")
    node.ok("messages", "send", "tailed", "hello")
    done = node.cli("events", "tail", "--actor", f"agent/{agent_id}", "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["kind"] == "run.finished"
    after = node.cli("events", "tail", "--actor", f"agent/{agent_id}", "--after", "3", "--json")
    assert [json.loads(line) for line in after.out.splitlines()] == rows[3:]
    future = node.cli("events", "tail", "--after", str(10**12), "--json")
    assert (future.status, future.error["code"]) == (2, "cursor_ahead")
