"""The last part: the event log and the audit log are read again, and must tell the same story."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from demo.claims import Narrator
from demo.scene import Scene, read_tree
from demo.stage import Stage
from demo.story import Told
from demo.timeline import make_timeline, render


def show_timeline(stage: Stage, narrator: Narrator, told: Told) -> None:
    """Print the timeline from ``kelpie events tail``, and claim that it says what was skipped.

    Raises:
        ClaimError: It does not.
    """
    narrator.chapter("The timeline, from the event log (== marks what this demo did)")
    listed = stage.kelpie("events", "tail", "--json")
    events = [json.loads(line) for line in listed.stdout.splitlines()]
    texts: list[str] = []
    for line in make_timeline(events, stage.moments):
        texts.append(render(line))
        narrator.line(f"  {narrator.paint(texts[-1], 'cyan') if line.is_crash else texts[-1]}")
    once, again = (
        {
            (event["body"]["state"], event["body"]["attempt"])
            for event in events
            if event["kind"].startswith("effect.") and event["body"]["effect_id"] == effect_id
        }
        for effect_id in (told.once, told.again)
    )
    narrator.true(
        "it says that the first command is unknown after one attempt",
        ("unknown", 1) in once
        and max(attempt for _, attempt in once) == 1
        and any("  unknown " in text for text in texts),
        expected="unknown, attempt 1",
        seen=sorted(once),
    )
    narrator.true(
        "it says that the idempotent command was interrupted and run again",
        ("done", 2) in again and any("running again (repeatable)" in text for text in texts),
        expected="running again (repeatable), and done at attempt 2",
        seen=sorted(again),
    )


def prove(stage: Stage, scene: Scene, narrator: Narrator, told: Told) -> None:
    """Prove from audit, events and workspace what happened, and how often.

    Raises:
        ClaimError: One of them tells another story.
    """
    narrator.chapter("The proof, from the audit log and the workspace")
    verified = stage.kelpie("audit", "verify", "--json")
    narrator.equal(
        f"kelpie audit verify: the hash chains of {verified.data()['records']} records are whole",
        expected=(0, True),
        seen=(verified.status, verified.data()["ok"]),
    )
    audit = [_effect_step(each) for each in stage.audit() if each["kind"].startswith("effect.")]
    events = [
        _effect_step(each)
        for each in stage.pages("/v1/events", "events")
        if each["kind"].startswith("effect.")
    ]
    narrator.equal(
        f"audit and event log agree on all {len(audit)} steps of all effects",
        expected=Counter(audit),
        seen=Counter(events),
    )
    narrator.equal(
        f"{scene.rewrite.path} was written once: started once, done once",
        expected=[1, 1],
        seen=[_count(audit, told.write, state) for state in ("started", "done")],
    )
    narrator.equal(
        "the unknown command was started once, never again, and never called done",
        expected=[1, 1, 0],
        seen=[_count(audit, told.once, state) for state in ("started", "unknown", "done")],
    )
    narrator.equal(
        "the idempotent command was started twice and done once; its changes landed once",
        expected=[2, 1, 1, 1],
        seen=[
            *(_count(audit, told.again, state) for state in ("started", "done")),
            *(_count(audit, told.landing, state) for state in ("started", "done")),
        ],
    )
    started = {effect_id for effect_id, kind, _ in audit if kind == "effect.started"}
    red = {
        each["effect_id"]
        for each in stage.pages("/v1/effects", "effects", actor=f"agent/{told.agent_id}")
        if each["verdict"] is not None and each["verdict"]["color"] != "green"
    }
    narrator.equal(
        "besides these, the agent started nothing that is not green",
        expected={told.write, told.once, told.again, told.landing},
        seen=started & red,
    )
    narrator.equal(
        "the workspace holds what the approved cards promised, and nothing else",
        expected=scene.files_after(),
        seen=read_tree(told.workspace),
    )


def _effect_step(row: dict[str, Any]) -> tuple[str, str, int]:
    return (row["body"]["effect_id"], row["kind"], row["body"]["attempt"])


def _count(steps: list[tuple[str, str, int]], effect_id: str, state: str) -> int:
    return sum(step[:2] == (effect_id, f"effect.{state}") for step in steps)
