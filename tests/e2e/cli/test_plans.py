"""Plan and apply: what would change, one yes, and nothing left to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.support.node import Node

CHANGES, WAITING, DENIED, USAGE, INTERRUPTED = 2, 3, 7, 64, 130
WORKSPACE = """\
version: 1
units:
  - id: etc
    type: linux.dir
    path: etc
  - id: motd
    type: linux.file
    path: etc/motd
    content: "Welcome.\\n"
"""


@pytest.fixture(params=["beside a server", "alone"])
def root(request: pytest.FixtureRequest, node: Node) -> Path:
    """The directory that the plan is about; with a server or without one."""
    (node.directory / "site.yaml").write_text(WORKSPACE, encoding="utf-8")
    directory = node.directory / "root"
    directory.mkdir()
    if request.param != "alone":
        node.serve()
    return directory


@pytest.mark.covers("kelpie plan", "kelpie apply")
def test_a_plan_is_applied_once_and_the_next_one_is_empty(node: Node, root: Path) -> None:
    planned = node.cli("plan", "site.yaml", "--root", "root")
    assert planned.status == CHANGES
    assert "+ linux.file etc/motd" in planned.out
    assert "+Welcome." in planned.out
    assert list(root.iterdir()) == []
    applied = node.cli("apply", "site.yaml", "--root", "root", "--yes", "--json")
    assert applied.status == 0, applied.err
    assert applied.json["status"] == "applied"
    assert (root / "etc" / "motd").read_text() == "Welcome.\n"
    again = node.cli("plan", "site.yaml", "--root", "root", "--json")
    assert (again.status, again.json["has_changes"]) == (0, False)


def test_a_plan_that_is_not_waited_for_goes_on_once_it_is_approved(node: Node, root: Path) -> None:
    left = node.cli("apply", "site.yaml", "--root", "root", "--no-wait", "--json")
    assert left.status == WAITING, left.err
    assert list(root.iterdir()) == []
    plan_id = left.json["actor"].removeprefix("plan/")
    node.ok("approvals", "approve", left.json["effect_id"])
    assert node.ok("apply", "--plan", plan_id)["status"] == "applied"
    assert (root / "etc" / "motd").read_text() == "Welcome.\n"


def test_a_plan_that_is_denied_changes_nothing(node: Node, root: Path) -> None:
    left = node.cli("apply", "site.yaml", "--root", "root", "--no-wait", "--json")
    node.ok("approvals", "deny", left.json["effect_id"])
    plan_id = left.json["actor"].removeprefix("plan/")
    ended = node.cli("apply", "--plan", plan_id, "--json")
    assert (ended.status, ended.json["status"]) == (DENIED, "denied")
    assert list(root.iterdir()) == []


def test_leaving_a_plan_that_waits_says_how_to_come_back(node: Node, root: Path) -> None:
    argv = [sys.executable, "-m", "kelpie.cli", "apply", "site.yaml", "--root", "root"]
    with Terminal(argv, environment=node.environment(), cwd=node.directory) as terminal:
        terminal.await_text("[s]kip? ")
        terminal.press(b"\x03")
        terminal.await_text("The plan stays: kelpie apply --plan plan-")
        assert terminal.await_end() == INTERRUPTED
        plan_id = terminal.shown.rpartition("--plan ")[2].split()[0]
    assert node.ok("apply", "--plan", plan_id, "--yes")["status"] == "applied"
    assert (root / "etc" / "motd").read_text() == "Welcome.\n"


def test_a_workspace_that_is_wrong_is_refused_by_line(node: Node, root: Path) -> None:
    (node.directory / "site.yaml").write_text("version: 1\nunits:\n  - id: x\n", encoding="utf-8")
    refused = node.cli("plan", "site.yaml", "--root", "root", "--json")
    assert (refused.status, refused.out) == (USAGE, "")
    assert "site.yaml, line 3" in refused.error["message"]
