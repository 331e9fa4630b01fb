"""Answers of the HTTP edge that several tests use."""

from __future__ import annotations

from typing import Any

from tests.unit.cli.product import Answer, Desk, Events, Refusal, Request, Route

EFFECT: dict[str, Any] = {
    "effect_id": "effect-1",
    "actor": "agent/agent-1",
    "kind": "files.apply",
    "state": "waiting",
    "summary": "write notes.txt",
    "digest": "sha256:aa",
    "due_ms": 4_000_000_000_000,
    "created_ms": 1_700_000_000_000,
    "updated_ms": 1_700_000_000_000,
    "card": {
        "title": "Rewrite notes.txt",
        "files": [
            {
                "path": "notes.txt",
                "change": "update",
                "diff": "--- notes.txt\n+++ notes.txt\n@@ -1 +1 @@\n-old\n+new\n",
            }
        ],
        "argv": ["sh", "-c", "echo hi"],
        "reasons": ["it writes a file"],
        "where": "bubblewrap, no network",
        "undo": "write the old text back",
    },
}
AGENT = {"id": "agent-1", "name": "ada", "model": "openai/x"}
PLAN: dict[str, Any] = {
    "plan_id": "plan-1",
    "status": "planned",
    "has_changes": True,
    "counts": {"create": 1, "update": 0, "delete": 0, "none": 1},
    "note": "",
    "units": [
        {"unit_id": "d", "type": "linux.dir", "path": "etc", "action": "none"},
        {"unit_id": "f", "type": "linux.file", "path": "etc/motd", "action": "create"},
    ],
    "files": [{"path": "etc/motd", "change": "create", "diff": "+hello\n"}],
}


def event(sequence: int, kind: str, actor: str = "agent/agent-1", **body: Any) -> dict[str, Any]:
    """One event as ``/v1/events`` shows it."""
    return {
        "position": 100 + sequence,
        "actor": actor,
        "sequence": sequence,
        "at_ms": 1_700_000_000_000,
        "kind": kind,
        "body": body,
    }


class Question:
    """An approval that can be answered once; keeps the answers it got."""

    def __init__(self, desk: Desk) -> None:
        self.effect = dict(EFFECT)
        self.answers: list[dict[str, Any]] = []
        routes = desk.product.routes
        routes["GET", "/v1/approvals"] = self.waiting
        routes["GET", "/v1/approvals/effect-1"] = lambda _: self.effect
        routes["POST", "/v1/approvals/effect-1/approve"] = lambda asked: self.decide(asked, "done")
        routes["POST", "/v1/approvals/effect-1/deny"] = lambda asked: self.decide(asked, "denied")

    def waiting(self, _: Request) -> Answer:
        return {
            "effects": [self.effect] if self.effect["state"] == "waiting" else [],
            "next_after": None,
        }

    def decide(self, request: Request, state: str) -> Answer:
        if self.effect["state"] != "waiting":
            return Refusal(409, "already_decided", f"it is {self.effect['state']}")
        self.answers.append(request.body)
        self.effect["state"] = state
        return self.effect


def log(*events: dict[str, Any]) -> Route:
    """An event log: pages without ``follow``, an endless stream with it."""

    def answer(request: Request) -> Answer:
        rows = [row for row in events if row["sequence"] > int(request.query.get("after", 0))]
        if request.query.get("follow"):
            return Events(rows, endless=True)
        return {"events": rows, "next_after": rows[-1]["sequence"] if rows else 0}

    return answer
