"""Agents of a cluster: any node is asked, approves, and what happens outside happens once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.cluster.bed import SETTLE_S, Bed
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.postgres import shared_server
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.cluster.bed import BedNode

AGENTS = 6

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, shared_server())
    try:
        asyncio.run(made.begin(2, *conversation()))
        yield made
    finally:
        made.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clerk:
    """An agent, its file, and the two nodes: where it was made, and the other one."""

    agent_id: str
    file: Path
    here: BedNode
    there: BedNode

    def send(self, node: BedNode, text: str) -> Any:
        """The answer to a message."""
        return node.server.post(f"/v1/agents/{self.agent_id}/messages", {"input": text})

    def owner(self, node: BedNode) -> str:
        """The name of the node that serves it."""
        place = node.server.get("/v1/cluster/where", actor=f"agent/{self.agent_id}")["where"]
        return str(place["node"])

    def effects(self, node: BedNode) -> list[dict[str, Any]]:
        """Its effects that were to write."""
        listed = node.server.get("/v1/effects", actor=f"agent/{self.agent_id}")["effects"]
        return [effect for effect in listed if effect["kind"] == "files.apply"]


def employ(bed: Bed, tmp_path: Path) -> list[Clerk]:
    """Agents that were made at either node."""
    clerks: list[Clerk] = []
    for number in range(AGENTS):
        here, there = bed.nodes if number % 2 else bed.nodes[::-1]
        workspace = tmp_path / f"work{number}"
        workspace.mkdir()
        workspace.chmod(0o777)
        (workspace / FILE).write_text(BEFORE, encoding="utf-8")
        body = {"name": f"clerk{number}", "workspace": str(workspace)}
        agent_id = here.server.post("/v1/agents", body)["id"]
        clerks.append(Clerk(agent_id=agent_id, file=workspace / FILE, here=here, there=there))
    return clerks


def ask_to_write(clerks: list[Clerk]) -> None:
    """Have every agent ask a person whether it may write."""
    for clerk in clerks:
        stopped = clerk.send(clerk.there, "write")
        assert stopped["stop_reason"]["stop_reason"] == "requires_approval"
        assert clerk.file.read_text() == BEFORE


def approve(node: BedNode, clerk: Clerk) -> None:
    (asked,) = clerk.effects(node)
    node.server.post(f"/v1/approvals/{asked['effect_id']}/approve", {"digest": asked["digest"]})


def check_written_once(node: BedNode, clerk: Clerk) -> None:
    """Fail unless the approved write was carried out, and its conversation came to its end."""

    def is_over() -> bool:
        states = [effect["state"] for effect in clerk.effects(node)]
        shown = node.server.get(f"/v1/agents/{clerk.agent_id}")
        return states == ["done"] and bool(shown["last_stop_reason"] == "end_turn")

    eventually(is_over, within_s=SETTLE_S, what="the run's end")
    assert clerk.file.read_text() == AFTER
    states = [effect["state"] for effect in clerk.effects(node)]
    assert states == ["done"]


@pytest.mark.requirement("CLUSTER-ANY-NODE")
def test_an_agent_is_talked_to_streamed_and_approved_at_the_node_that_does_not_serve_it(
    bed: Bed, tmp_path: Path
) -> None:
    clerks = employ(bed, tmp_path)
    assert {clerk.owner(bed.nodes[0]) for clerk in clerks} == {"node1", "node2"}
    for clerk in clerks:
        for node in bed.nodes:
            answer = clerk.send(node, "hello")
            assert answer["messages"][-1]["content"] == "Hello to you."
            path = f"/v1/agents/{clerk.agent_id}/messages/stream"
            told = node.server.ask("POST", path, json={"input": "slow", "stream_tokens": True})
            assert told.text.count("assistant_message") > 1, told.text
    ask_to_write(clerks)
    waiting = [len(node.server.get("/v1/approvals")["effects"]) for node in bed.nodes]
    assert waiting == [AGENTS, AGENTS]
    for clerk in clerks:
        approve(clerk.here, clerk)
        check_written_once(clerk.there, clerk)
    assert bed.nodes[0].server.get("/v1/audit/verify")["ok"]


@pytest.mark.requirement("CLUSTER-MEMBERS")
def test_questions_of_a_node_that_was_killed_are_answered_at_another(
    bed: Bed, tmp_path: Path
) -> None:
    clerks = employ(bed, tmp_path)
    ask_to_write(clerks)
    dead, living = bed.nodes
    dead.kill()
    for clerk in clerks:
        approve(living, clerk)
    for clerk in clerks:
        check_written_once(living, clerk)
    assert living.server.get("/v1/audit/verify")["ok"]


@pytest.mark.requirement("CLUSTER-HISTORY")
def test_a_node_stopped_with_approved_effects_does_not_carry_them_out_again(
    bed: Bed, tmp_path: Path
) -> None:
    clerks = employ(bed, tmp_path)
    ask_to_write(clerks)
    zombie, living = bed.nodes
    zombie.stop()
    with ThreadPoolExecutor(AGENTS) as pool:
        for decided in [pool.submit(approve, living, clerk) for clerk in clerks]:
            decided.result()
    for clerk in clerks:
        check_written_once(living, clerk)
        clerk.file.write_text("changed by a person\n", encoding="utf-8")
    zombie.go_on()
    asyncio.run(bed.owned_by(*bed.nodes))
    for clerk in clerks:
        assert clerk.send(zombie, "hello")["messages"][-1]["content"] == "Hello to you."
        assert clerk.file.read_text() == "changed by a person\n"
        assert [effect["state"] for effect in clerk.effects(zombie)] == ["done"]
    assert zombie.server.get("/v1/audit/verify")["ok"]
