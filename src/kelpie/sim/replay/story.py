"""A replayed run, and a fork of it, as people and programs read them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from kelpie.actors.commands import Emit, WriteEffect
from kelpie.sim.debug import Debugger
from kelpie.sim.replay.again import Replayed, Step
from kelpie.sim.replay.fork import Forked
from kelpie.sim.replay.record import EventRead, RunRecord
from kelpie.sim.timeline import Timeline
from kelpie.sim.view import CommitSeen, Violation
from kelpie.sim.wording import cut_ids, decode
from kelpie.storage.records import Commit, CommitReceipt, EventAppend

SAME_AS_RECORDED: Final = "same-as-recorded"
LINE_CHARS_MAX: Final = 200
_PLACE: Final = "replay"

_encode: Final = msgspec.msgpack.Encoder().encode


class RunStory(Timeline):
    """The steps of a run, the recorded ones first, then those of its fork.

    Attributes:
        steps: What `turns` are made of.
        difference: What a fork changed, as lines of a unified diff; empty without a fork.
    """

    def __init__(
        self, record: RunRecord, replayed: Replayed, forked: Forked | None, at: int = 0
    ) -> None:
        kept = replayed.steps if forked is None else replayed.steps[: at - 1]
        self.steps = (*kept, *(forked.steps if forked else ()))
        self._forked_at = at if forked else len(self.steps) + 1
        self._ending = forked.ending if forked else ""
        self._problem = replayed.problem
        self._is_ended = record.is_ended
        self.difference = tuple(_differ(replayed.steps[at - 1 :], forked.steps)) if forked else ()
        began_ms = self.steps[0].at_ms
        violation = None
        if forked is None and replayed.problem:
            at_ns = (self.steps[-1].at_ms - began_ms) * 1_000_000
            violation = Violation(
                invariant=SAME_AS_RECORDED,
                text=replayed.problem,
                step=len(self.steps),
                at_ns=at_ns,
            )
        log = [_seen(record, step, began_ms) for step in self.steps]
        super().__init__(
            log,
            violation=violation,
            invariants=(SAME_AS_RECORDED,),
            states={(_PLACE, record.actor): decode(_encode(record.before))},
        )

    def _lines(self, seen: CommitSeen) -> Iterator[str]:
        step = self.steps[seen.commit.expected_version]
        source = f"  [{step.source}]" if step.number >= self._forked_at else ""
        yield f"because: {cut_ids(step.cause.title)}{source}"
        for row in seen.commit.effects:
            yield f"{self.show_effect(row)}: {row.state}"
        for event in step.events:
            for line in _lines_of(event):
                yield line if len(line) <= LINE_CHARS_MAX else f"{line[:LINE_CHARS_MAX]}…"
        if step.problem:
            yield f"problem: {step.problem}"

    @property
    def verdict(self) -> str:
        """How it ended, on one line."""
        if self._ending:
            return f"forked: {self._ending}"
        if self._problem:
            return self._problem
        end = "to its end" if self._is_ended else "as far as it is"
        return f"the same as recorded, {end}: {len(self.steps):,} steps"


class RunDebugger(Debugger):
    """Steps over a replayed run; knows what a fork changed."""

    def __init__(self, story: RunStory, say: Callable[[str], None]) -> None:
        super().__init__(story, say)
        self._difference = story.difference
        self._commands["versus"] = self._versus

    def _versus(self, rest: str) -> None:
        del rest
        for line in self._difference:
            self._say(line)
        if not self._difference:
            self._say("nothing is different from the record")


def describe(story: RunStory, record: RunRecord) -> dict[str, Any]:
    """Return the whole story as JSON values."""
    return {
        "run_id": record.run.run_id,
        "agent": str(record.actor),
        "verdict": story.verdict,
        "is_same": story.violation is None and not story.difference,
        "before": msgspec.to_builtins(story.steps[0].before.inner),
        "steps": [_describe(step) for step in story.steps],
        "difference": list(story.difference),
    }


def _describe(step: Step) -> dict[str, Any]:
    return {
        "number": step.number,
        "at_ms": step.at_ms,
        "because": step.cause.title,
        "source": step.source,
        "message": msgspec.to_builtins(step.cause.message),
        "events": [{"kind": event.kind, "body": event.body} for event in step.events],
        "effects": [msgspec.to_builtins(record) for record in step.records.values()],
        "state": msgspec.to_builtins(step.after.inner),
        "problem": step.problem,
    }


def _seen(record: RunRecord, step: Step, began_ms: int) -> CommitSeen:
    commit = Commit(
        actor=record.actor,
        shard=record.actor.shard,
        epoch=0,
        incarnation=1,
        expected_version=step.number - 1,
        schema_version=1,
        now_ms=step.at_ms,
        state=_encode(step.after.inner),
        effects=tuple(each.row for each in step.commands if isinstance(each, WriteEffect)),
        events=tuple(
            EventAppend(each.kind, _encode(each.body))
            for each in step.commands
            if isinstance(each, Emit)
        ),
    )

    receipt = CommitReceipt(step.number, (), 0)
    return CommitSeen(_PLACE, "", commit, receipt, (step.at_ms - began_ms) * 1_000_000)


def _differ(recorded: Iterable[Step], forked: Iterable[Step]) -> Iterator[str]:
    before, after = (
        [line for step in steps for event in step.events for line in _lines_of(event)]
        for steps in (recorded, forked)
    )
    yield from difflib.unified_diff(before, after, "recorded", "forked", lineterm="", n=2)


def _lines_of(event: EventRead) -> Iterator[str]:
    """Yield what an event says, without what is new in every run: ids and times."""
    body = event.body
    match event.kind:
        case "message":
            content = body["content"]
            text = content if isinstance(content, str) else json.dumps(content)
            yield f"{body['role']}: {text}"
            for call in body["tool_calls"]:
                yield f"{body['role']} calls {call['name']} {call['arguments']}"
        case "run.finished":
            run = body["run"]
            yield f"run.finished: {run['status']}, {run['stop_reason']} {run['error']}".rstrip()
        case kind if kind.startswith("effect."):
            yield f"{kind}: {body.get('summary', '')}  {body.get('note', '')}".rstrip()
        case kind:
            yield kind


def tell(story: RunStory) -> Iterator[str]:
    """Yield the story line by line: the steps, how it ended, and what a fork changed."""
    yield from story.tell()
    yield from story.difference
