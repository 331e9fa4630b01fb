"""Two terminals at once: one answer counts, and nothing that both do is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

CONFLICT, HELD = 5, 73
RACERS = 3


def ask(node: Node) -> str:
    """An agent asks to write a file; returns the approval's id."""
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    node.ok("agents", "create", "ada", "--workspace", "workspace")
    assert node.cli("messages", "send", "ada", "write").status == 3
    (waiting,) = node.ok("approvals", "list")
    return str(waiting["effect_id"])


@pytest.mark.parametrize("verb", ["approve", "deny"])
@pytest.mark.requirement("ANSWER-ONCE")
def test_of_several_answers_exactly_one_wins(node: Node, verb: str) -> None:
    node.script(*conversation())
    server = node.serve()
    effect_id = ask(node)
    racers = [node.kelpie("approvals", verb, effect_id, "--json") for _ in range(RACERS)]
    statuses = sorted(racer.wait() for racer in racers)
    assert statuses == [0, *[CONFLICT] * (RACERS - 1)]
    decided = {"approve": "effect.approved", "deny": "effect.denied"}[verb]
    eventually(lambda: server.stats()["effects_open"] == 0, within_s=10, what="the run's end")
    audit = server.get("/v1/audit", limit=1000)["records"]
    mine = [r["kind"] for r in audit if r["body"].get("effect_id") == effect_id]
    assert mine.count(decided) == 1
    assert mine.count("effect.started") == (verb == "approve")
    expected = AFTER if verb == "approve" else BEFORE
    assert (node.workspace / FILE).read_text() == expected


def test_a_yes_against_a_no_leaves_one_of_them(node: Node) -> None:
    node.script(*conversation())
    server = node.serve()
    effect_id = ask(node)
    yes, no = (node.kelpie("approvals", verb, effect_id) for verb in ("approve", "deny"))
    statuses = (yes.wait(), no.wait())
    assert sorted(statuses) == [0, CONFLICT]
    eventually(lambda: server.stats()["effects_open"] == 0, within_s=10, what="the run's end")
    assert (node.workspace / FILE).read_text() == (AFTER if statuses[0] == 0 else BEFORE)


def test_commands_without_a_server_never_share_the_store(node: Node) -> None:
    model = ("--model", "openai/scripted", "--json")
    makers = [node.kelpie("agents", "create", f"agent-{n}", *model) for n in range(RACERS)]
    statuses = [maker.wait() for maker in makers]
    assert set(statuses) <= {0, HELD}
    assert 0 in statuses
    assert len(node.ok("agents", "list")) == statuses.count(0)
    for maker, status in zip(makers, statuses, strict=True):
        assert status == 0 or "store_held" in maker.err
