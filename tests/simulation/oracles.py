"""What must hold of a store after any history of crashes, once its client is satisfied."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from kelpie.app.opened import App
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.effects.model import EffectRecord
from kelpie.storage.records import Page
from tests.simulation.asgi import request
from tests.simulation.story import BUILD, CHECK, PROMPTS, REPORT, Host


async def check_everything(app: App, host: Host) -> None:
    """Assert every promise over one finished host."""
    messages = await read_transcript(app, host)
    check_messages(messages)
    records = await read_effects(app)
    audit = await read_audit(app)
    check_effects(records, audit, host)
    check_workspace(records, host)
    verdict = (await request(app.asgi, "GET", "/v1/audit/verify")).json()
    assert verdict["ok"], verdict
    soundness = (await request(app.asgi, "POST", "/v1/store/check")).json()
    assert soundness["ok"], soundness
    stats = await app.node.store.stats()
    assert (stats.outbox, stats.dead_letters) == (0, 0)
    app.node.runtime.check_invariants()


async def read_transcript(app: App, host: Host) -> list[dict[str, Any]]:
    path = f"/v1/agents/{host.client.agent}/messages?order=asc&limit=200"
    answer = await request(app.asgi, "GET", path)
    assert answer.status == 200, answer.body
    return list(answer.json())


def check_messages(messages: list[dict[str, Any]]) -> None:
    """No acknowledged message is lost or doubled; every call has exactly one return, after it."""
    said = [each["content"] for each in messages if each["message_type"] == "user_message"]
    assert said == list(PROMPTS), said
    open_calls: set[str] = set()
    answered: Counter[str] = Counter()
    for message in messages:
        match message["message_type"]:
            case "tool_call_message" | "approval_request_message":
                for call in message["tool_calls"]:
                    open_calls.add(call["tool_call_id"])
            case "tool_return_message":
                for returned in message["tool_returns"]:
                    assert returned["tool_call_id"] in open_calls, "a return without its call"
                    answered[returned["tool_call_id"]] += 1
            case _:
                continue
    assert dict(answered) == dict.fromkeys(open_calls, 1), "a call is answered exactly once"


async def read_effects(app: App) -> list[EffectRecord]:
    rows = await app.node.store.effects(Page(tenant=TENANT_DEFAULT, limit=1000))
    return [msgspec.msgpack.decode(row.body, type=EffectRecord) for row in rows]


async def read_audit(app: App) -> dict[str, Counter[str]]:
    """Return how often each effect went through each transition."""
    seen: dict[str, Counter[str]] = {}
    async for record in app.node.store.audit(TENANT_DEFAULT):
        body = msgspec.msgpack.decode(record.body)
        if record.kind.startswith("effect."):
            seen.setdefault(body["effect_id"], Counter())[record.kind] += 1
    return seen


def check_effects(records: list[EffectRecord], audit: dict[str, Counter[str]], host: Host) -> None:
    """Every effect kept its own promise, and no red one ran without a person's yes."""
    for record in records:
        seen = audit[record.effect_id]
        ended = record.state in {"done", "failed", "denied", "expired", "voided", "cancelled"}
        assert ended or record.state == "unknown", f"{record.kind} is left {record.state}"
        assert seen["effect.started"] == record.attempt, "every attempt is recorded"
        if record.promise == "once":
            assert seen["effect.started"] <= 1, "a once effect was started again"
        if record.state == "unknown":
            assert record.promise == "once"
        if record.verdict is not None and record.verdict.color == "red" and record.attempt:
            assert host.client.approved[record.effect_id] == record.digest
            assert record.approval is not None
            assert record.approval.digest == record.digest
            assert record.approval.by != "policy"
    ran = Counter(host.started)
    assert ran[" ".join(BUILD)] <= 1, "the once command ran twice"
    assert ran[" ".join(CHECK)] >= 1, "the idempotent command never ran"


def check_workspace(records: list[EffectRecord], host: Host) -> None:
    """Files are as the cards that were approved said, and nothing else changed."""
    assert (host.workspace / "report.txt").read_text() == REPORT
    assert (host.workspace / "notes.txt").read_text() == "remember the milk\n"
    writes = [each for each in records if each.kind == "files.apply"]
    assert all(each.state == "done" for each in writes), "an approved write did not end"
    landed = (host.workspace / "out.txt").exists()
    assert landed == any("from_command" in each.args for each in writes)
    names = {path.name for path in host.workspace.iterdir()}
    assert names <= {"notes.txt", "report.txt", "out.txt"}, names
