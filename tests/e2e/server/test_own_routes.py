"""Kelpie's own routes over real sockets: effects, approvals, events, plans, audit, store, docs."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from kelpie.server import table
from tests.e2e.support.node import Node, Server
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

CONFLICT = 5
WORKSPACE = """\
version: 1
units:
  - id: motd
    type: linux.file
    path: motd
    content: "Welcome.\\n"
"""


@pytest.fixture(scope="module")
def server(shared: Node) -> Server:
    shared.script(*conversation())
    return shared.serve()


def ask_to_write(shared: Node, server: Server) -> tuple[str, dict[str, Any]]:
    """An agent that waits for a yes to a write, and what it waits for."""
    (shared.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    body = {"name": "own", "workspace": str(shared.workspace)}
    agent_id = server.post("/v1/agents", body)["id"]
    server.post(f"/v1/agents/{agent_id}/messages", {"input": "write"})
    waiting = server.get("/v1/approvals")["effects"]
    (mine,) = [each for each in waiting if each["actor"] == f"agent/{agent_id}"]
    return agent_id, mine


@pytest.mark.covers(
    "GET /v1/approvals",
    "GET /v1/approvals/{id}",
    "POST /v1/approvals/{id}/approve",
    "GET /v1/effects",
    "GET /v1/effects/{id}",
)
def test_a_yes_to_a_card_lets_exactly_what_it_shows_happen(shared: Node, server: Server) -> None:
    agent_id, asked = ask_to_write(shared, server)
    path = f"/v1/approvals/{asked['effect_id']}"
    assert server.get(path) == asked
    card = asked["card"]
    assert card["files"][0]["diff"].splitlines()[-2:] == ["-before", "+after"]
    assert card["reasons"]
    assert card["undo"]
    assert card["where"]
    assert card["expires_ms"] == asked["due_ms"] > asked["created_ms"]
    assert server.post(f"{path}/approve", {"digest": asked["digest"]})["state"] == "approved"
    eventually(
        lambda: server.get(f"/v1/effects/{asked['effect_id']}")["state"] == "done",
        within_s=10,
        what="the write to be done",
    )
    assert (shared.workspace / FILE).read_text() == AFTER
    listed = server.get("/v1/effects", actor=f"agent/{agent_id}", state="done")["effects"]
    newest = server.get("/v1/effects", actor=f"agent/{agent_id}", state="done", order="desc")
    assert newest["effects"][-len(listed) :] == listed[::-1]
    assert asked["effect_id"] in {each["effect_id"] for each in listed}


@pytest.mark.covers("POST /v1/approvals/{id}/deny")
def test_a_no_is_final_and_changes_nothing(shared: Node, server: Server) -> None:
    _, asked = ask_to_write(shared, server)
    denied = server.post(f"/v1/approvals/{asked['effect_id']}/deny", {"reason": "not today"})
    assert denied["state"] == "denied"
    assert (shared.workspace / FILE).read_text() == BEFORE


@pytest.mark.covers("GET /v1/events")
def test_events_come_in_pages_and_as_a_stream_that_resumes(shared: Node, server: Server) -> None:
    agent_id = server.post("/v1/agents", {"name": "events"})["id"]
    server.post(f"/v1/agents/{agent_id}/messages", {"input": "hello"})
    parameters = {"actor": f"agent/{agent_id}"}
    page = server.get("/v1/events", **parameters, limit=1000)
    sequences = [event["sequence"] for event in page["events"]]
    assert sequences == list(range(1, len(sequences) + 1))
    assert page["next_after"] == sequences[-1]
    with (
        server.client() as client,
        client.stream(
            "GET",
            "/v1/events",
            params=parameters | {"follow": "true"},
            headers={"last-event-id": str(sequences[-2])},
        ) as response,
    ):
        lines = response.iter_lines()
        first = [next(lines) for _ in range(3)]
        assert first[0] == f"id: {sequences[-1]}"
        assert json.loads(first[2].removeprefix("data: ")) == page["events"][-1]
        server.post(f"/v1/agents/{agent_id}/messages", {"input": "hello"})
        assert [next(lines), next(lines)] == ["", f"id: {sequences[-1] + 1}"]


@pytest.mark.covers(
    "POST /v1/plans", "GET /v1/plans", "GET /v1/plans/{id}", "POST /v1/plans/{id}/apply"
)
def test_a_plan_waits_for_one_yes_and_is_carried_out(shared: Node, server: Server) -> None:
    root = shared.directory / "root"
    root.mkdir()
    plan = server.post("/v1/plans", {"yaml": WORKSPACE, "root": str(root)})
    path = f"/v1/plans/{plan['plan_id']}"
    assert plan["has_changes"]
    assert plan["plan_id"] in [each["plan_id"] for each in server.get("/v1/plans")["plans"]]
    server.post(f"{path}/apply")
    eventually(lambda: server.get(path)["status"] == "waiting", within_s=10, what="the plan to ask")
    assert not (root / "motd").exists()
    waiting = server.get("/v1/approvals")["effects"]
    (asked,) = [each for each in waiting if each["actor"] == f"plan/{plan['plan_id']}"]
    server.post(f"/v1/approvals/{asked['effect_id']}/approve", {"digest": asked["digest"]})
    eventually(lambda: server.get(path)["status"] == "applied", within_s=10, what="the plan's end")
    assert (root / "motd").read_text() == "Welcome.\n"
    again = server.post("/v1/plans", {"yaml": WORKSPACE, "root": str(root)})
    assert not again["has_changes"]


@pytest.mark.covers("GET /v1/audit", "GET /v1/audit/verify")
def test_the_audit_pages_and_its_chains_verify(shared: Node, server: Server) -> None:
    _, asked = ask_to_write(shared, server)
    server.post(f"/v1/approvals/{asked['effect_id']}/deny")
    records: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = server.get("/v1/audit", limit=3, **after)
        records += page["records"]
        if page["next_after"] is None:
            break
        after = {"after": page["next_after"]}
    kinds = [r["kind"] for r in records if r["body"].get("effect_id") == asked["effect_id"]]
    assert kinds == ["effect.proposed", "effect.waiting", "effect.denied"]
    links = {(record["shard"], record["hash"]) for record in records}
    roots = [r for r in records if (r["shard"], r["previous"]) not in links]
    assert [record["sequence"] for record in roots] == [1] * len(roots)
    verified = server.get("/v1/audit/verify")
    assert verified["ok"]
    assert verified["records"] >= len(records)


@pytest.mark.covers("GET /v1/store/stats", "POST /v1/store/check")
def test_the_store_tells_its_size_and_its_soundness(server: Server) -> None:
    server.post("/v1/agents", {"name": "counted"})
    stats = server.stats()
    assert stats["actors"] >= 1
    assert stats["size_bytes"] > 0
    assert not stats["held"]
    assert server.post("/v1/store/check") == {"ok": True, "problems": [], "damaged": []}


@pytest.mark.covers("POST /v1/store/backup", "POST /v1/store/compact", "POST /v1/store/release")
def test_the_care_of_the_store_is_for_its_own_socket(shared: Node, server: Server) -> None:
    target = shared.directory / "backup"
    for path, body in (("backup", {"target": str(target)}), ("compact", {}), ("release", {})):
        refused = server.ask("POST", f"/v1/store/{path}", json=body)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "local_only"
    assert not target.exists()
    transport = httpx.HTTPTransport(uds=str(shared.socket))
    with httpx.Client(transport=transport, base_url="http://kelpie") as local:
        made = local.post("/v1/store/backup", json={"target": str(target)})
        assert made.json() == {"target": str(target)}
        assert local.post("/v1/store/compact").json()["after_bytes"] > 0
        assert local.post("/v1/store/release").json() == {"held": False}
    assert target.is_dir()
    assert shared.cli("backup", str(target)).status == CONFLICT


@pytest.mark.covers("GET /v1/health", "GET /metrics", "GET /docs", "GET /openapi.json")
def test_the_server_describes_itself(server: Server) -> None:
    assert server.get("/v1/health")["status"] == "ok"
    metrics = server.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "http_server_requests" in metrics.text
    document = server.get("/openapi.json")
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert {(each.method, each.path) for each in table.operations()} <= described
    page = server.ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/agents" in page.text
