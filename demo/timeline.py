"""What happened, in order, from the event log: the log's own words, shortened to a line each.

The only lines that are not the log's are the deaths and births of the server, which no log of a
killed process can hold; they are marked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from demo.claims import WIDTH
from demo.stage import Moment

Event = dict[str, Any]
_QUIET: Final = frozenset(
    {
        *("step.started", "step.finished", "target.acquired", "target.released"),
        # The effect's own events say these.
        *("run.waiting", "plan.waiting", "plan.approved"),
    }
)
_STATES_QUIET: Final = frozenset({"proposed"})
_TEXT_CHARS_MAX: Final = WIDTH - len("00:00:00.000  ") - 2


class Line(NamedTuple):
    """One line of a timeline."""

    at_ms: int
    text: str
    is_crash: bool = False


def make_timeline(events: Iterable[Event], moments: Iterable[Moment]) -> list[Line]:
    """Return the lines of a timeline; a plan's many units become a line per burst."""
    entries: list[tuple[int, int, Event | Moment]] = []
    entries += [(moment.at_ms, 0, moment) for moment in moments]
    entries += [(event["at_ms"], event["position"], event) for event in events]
    entries.sort(key=lambda entry: entry[:2])
    lines: list[Line] = []
    burst: list[Event] = []
    for _, _, entry in entries:
        if isinstance(entry, dict) and _is_of_unit(entry):
            burst.append(entry)
            continue
        lines += _close(burst)
        burst = []
        if isinstance(entry, Moment):
            lines.append(Line(entry.at_ms, f"== {entry.text}", is_crash=True))
        elif text := describe(entry):
            lines.append(Line(entry["at_ms"], text))
    return [*lines, *_close(burst)]


def render(line: Line) -> str:
    """Return a line as it is printed."""
    seconds, milliseconds = divmod(line.at_ms, 1000)
    at = time.strftime("%H:%M:%S", time.localtime(seconds))
    text = line.text.replace("\n", " ")
    if len(text) > _TEXT_CHARS_MAX:
        text = f"{text[: _TEXT_CHARS_MAX - 3]}..."
    return f"{at}.{milliseconds:03}  {text}"


def describe(event: Event) -> str:
    """Return an event as one line; empty for one that says nothing to a reader."""
    kind, body = event["kind"], event["body"]
    if kind in _QUIET:
        return ""
    if kind == "message":
        return _describe_message(body)
    if kind.startswith("effect."):
        return _describe_effect(body)
    if kind.startswith("run."):
        status = body["run"]["status"] if kind == "run.finished" else ""
        return f"{kind.replace('.', ' ')} {status}".rstrip()
    if kind.startswith("plan."):
        return f"{kind.replace('.', ' ')} {body.get('status', '')}".rstrip()
    return str(kind)


def _describe_message(body: Event) -> str:
    if body["role"] == "tool" or not body["content"]:
        return ""
    return f"{body['role']}: {body['content']}"


def _describe_effect(body: Event) -> str:
    state, summary = body["state"], body["summary"] or body["kind"]
    if body["kind"] == "model.generate" or state in _STATES_QUIET:
        return ""
    if body["note"] and state == "approved":
        return f"{state:<8} {body['note']}"
    number = body["attempt"]
    attempt = f"attempt {number}: " if number > 1 or state == "unknown" else ""
    return f"{state:<8} {attempt}{summary}"


def _is_of_unit(event: Event) -> bool:
    kind = event["kind"]
    if kind.startswith("unit."):
        return True
    of_plan = event["actor"].startswith("plan/")
    return bool(of_plan and kind.startswith("effect.") and event["body"]["kind"] == "files.apply")


def _close(burst: list[Event]) -> Iterator[Line]:
    counts = Counter(event["kind"] for event in burst)
    started, finished = counts["unit.started"], counts["unit.finished"]
    if started or finished:
        yield Line(burst[-1]["at_ms"], f"units: {started} started, {finished} finished")
