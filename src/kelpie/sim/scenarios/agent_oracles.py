"""What must hold at the end of an agent's day, whatever happened in it.

Compares what the client and the person know with what the store, the audit and the files say.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kelpie.app.opened import App
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.effects.model import EffectRecord
from kelpie.sim.client import insist
from kelpie.storage.records import Page

if TYPE_CHECKING:
    from kelpie.sim.scenarios.agent_day import AgentDayScenario
    from kelpie.sim.world import SimulatedWorld

ENDED: Final = frozenset({"done", "failed", "denied", "expired", "voided", "cancelled"})
ROWS_MAX: Final = 1_000
TRANSCRIPT_ROWS_MAX: Final = 200


async def check_day(day: AgentDayScenario, world: SimulatedWorld) -> None:
    """Assert every promise over one finished day.

    Raises:
        AssertionError: A promise is broken.
    """
    assert day.host is not None, "the day has begun"
    app: App = day.host.service
    check_messages(await read_transcript(day), day.prompts)
    records = await read_effects(app)
    check_effects(records, await read_audit(app), day)
    check_commands(records, world)
    check_files(records, day, world)


async def read_transcript(day: AgentDayScenario) -> list[dict[str, Any]]:
    """Return every message of the agent, oldest first."""
    assert day.host is not None, "the day has begun"
    path = f"/v1/agents/{day.agent}/messages?order=asc&limit={TRANSCRIPT_ROWS_MAX}"
    answer = await insist(day.host, "GET", path)
    assert answer.status == 200, answer.body
    messages: list[dict[str, Any]] = answer.json()
    assert len(messages) < TRANSCRIPT_ROWS_MAX, "the day is too long for one page"
    return messages


def check_messages(messages: list[dict[str, Any]], prompts: tuple[str, ...]) -> None:
    """No acknowledged message is lost or doubled; every call has exactly one return, after it."""
    said = [each["content"] for each in messages if each["message_type"] == "user_message"]
    assert said == [f"{turn} {prompt}" for turn, prompt in enumerate(prompts)], said
    called: set[str] = set()
    answered: Counter[str] = Counter()
    for message in messages:
        match message["message_type"]:
            case "tool_call_message" | "approval_request_message":
                called.update(call["tool_call_id"] for call in message["tool_calls"])
            case "tool_return_message":
                returned = [each["tool_call_id"] for each in message["tool_returns"]]
                assert called.issuperset(returned), "a return without its call"
                answered.update(returned)
            case _:
                continue
    twice = [call for call, count in answered.items() if count > 1]
    assert not twice, f"answered more than once: {twice}"
    assert called == answered.keys(), f"never answered: {sorted(called - answered.keys())}"


async def read_effects(app: App) -> list[EffectRecord]:
    """Return every effect of the store."""
    rows = await app.node.store.effects(Page(tenant=TENANT_DEFAULT, limit=ROWS_MAX))
    assert len(rows) < ROWS_MAX, "the day has too many effects for one page"
    return [msgspec.msgpack.decode(row.body, type=EffectRecord) for row in rows]


async def read_audit(app: App) -> dict[str, Counter[str]]:
    """Return how often each effect went through each transition."""
    seen: dict[str, Counter[str]] = {}
    async for record in app.node.store.audit(TENANT_DEFAULT):
        body = msgspec.msgpack.decode(record.body)
        if record.kind.startswith("effect."):
            seen.setdefault(body["effect_id"], Counter())[record.kind] += 1
    return seen


def check_effects(
    records: list[EffectRecord], audit: dict[str, Counter[str]], day: AgentDayScenario
) -> None:
    """Every effect kept its own promise, and no red one ran without a person's yes."""
    assert day.person is not None, "the day has a person"
    for record in records:
        started = audit[record.effect_id]["effect.started"]
        assert record.state in ENDED | {"unknown"}, f"{record.kind} is left {record.state}"
        assert started == record.attempt, "every attempt is recorded"
        if record.promise == "once":
            assert started <= 1, "a once effect was started again"
        else:
            assert record.state != "unknown", f"a {record.promise} effect is unknown"
        if record.verdict is not None and record.verdict.color == "red" and record.attempt:
            agreed = day.person.agrees_to(record.effect_id)
            assert record.digest in agreed, f"{record.kind} ran without the person's yes"
            assert record.approval is not None
            assert record.approval.digest == record.digest
            assert record.approval.by != "policy"


def check_commands(records: list[EffectRecord], world: SimulatedWorld) -> None:
    """A command that may run once ran at most once for each effect that asked for it."""
    runs = Counter(world.commands_started)
    allowed: Counter[str] = Counter()
    for record in records:
        if record.kind == "command.run":
            argv = " ".join(record.args["argv"])
            allowed[argv] += record.attempt
    over = {argv: runs[argv] for argv in allowed if runs[argv] > allowed[argv]}
    assert not over, f"commands ran more often than they were started: {over}"


def check_files(records: list[EffectRecord], day: AgentDayScenario, world: SimulatedWorld) -> None:
    """Files are as the cards that were approved said, and nothing else changed."""
    if world.plan.injected["concurrency.target_moved"]:
        return  # somebody else wrote to the workspace
    found = {path.name: path.read_text() for path in sorted(day.workspace.iterdir())}
    applied = {
        path
        for record in records
        if record.kind == "files.apply" and record.state == "done"
        for path in _paths_of(record)
    }
    tried = {
        path
        for record in records
        if record.kind == "files.apply" and record.attempt
        for path in _paths_of(record)
    }
    assert found["notes.txt"] == "remember the milk\n"
    reports = {"Everything is done.\n"} if "report.txt" in applied else set[str]()
    if "report.txt" not in applied:
        reports = {"Nothing is done.\n"}
        if "report.txt" in tried:
            reports.add("Everything is done.\n")
    assert found["report.txt"] in reports, found["report.txt"]
    assert applied <= found.keys(), f"applied and not there: {applied - found.keys()}"
    assert found.keys() <= {"notes.txt", "report.txt"} | tried, sorted(found)


def _paths_of(record: EffectRecord) -> set[str]:
    card = record.preparation.card if record.preparation else None
    return {each.path for each in card.files} if card else set()
