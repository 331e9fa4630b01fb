"""Events as lines for people: when, what kind, and what it says in a few words.

The whole event is what ``--json`` prints; here ids that a person can use stay whole, and the rest
gives way. Invariant: one event is one line, and nothing in it can forge another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, cast

from kelpie.app.text import clip, safe_line
from kelpie.cli.output import Terminal, local_time
from kelpie.cli.plans import describe_event
from kelpie.cli.talk import content_text

_KIND_WIDTH: Final = 16
_LAST: Final = ("_id", "digest")
_COLORS: Final = {
    "effect.waiting": "yellow",
    "run.waiting": "yellow",
    "plan.waiting": "yellow",
    "effect.failed": "red",
    "effect.unknown": "red",
    "effect.denied": "red",
}


class EventLines:
    """Prints events; actor and day stand on a line of their own when one of them changes."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._title = ""

    def show(self, row: Mapping[str, Any], cursor: int) -> None:
        """Print one event; ``cursor`` is what ``--after`` takes to go on behind it."""
        terminal = self._terminal
        day, _, time = local_time(row["at_ms"]).partition(" ")
        title = f"{safe_line(str(row['actor']))}  {day}"
        if title != self._title:
            terminal.line(terminal.style(title, "bold"))
            self._title = title
        kind = safe_line(str(row["kind"])).ljust(_KIND_WIDTH)
        head = f"{cursor:>6}  {time}  "
        room = terminal.width - len(head) - len(kind) - 2
        painted = terminal.style(kind, _COLORS.get(str(row["kind"]), "cyan"))
        text = clip(safe_line(summary_of(row)), max(room, 20))
        terminal.line(f"{head}{painted}  {text}".rstrip())


def summary_of(row: Mapping[str, Any]) -> str:
    """Return what an event says in a few words; the text is untrusted.

    What a kind means is the word of the product's own actors; others may use it for something else.
    """
    kind, body = str(row["kind"]), _table(row["body"])
    actor_type, _, key = str(row["actor"]).partition("/")
    match actor_type, kind:
        case "agent", "message":
            return _message(body)
        case "agent", "run.finished":
            run = _table(body.get("run"))
            return _words(run.get("status"), run.get("stop_reason"), run.get("error"), between=", ")
        case "agent", "step.finished":
            usage = _table(body.get("usage"))
            return f"{usage.get('prompt_tokens')} tokens in, {usage.get('completion_tokens')} out"
        case "plan", "unit.started" | "unit.finished":
            return describe_event(row).strip()
        case _ if kind.startswith("effect.") and body.get("summary"):
            return _words(body["summary"], body.get("note"), body.get("effect_id"))
        case _:
            return _pairs(body, key=key) if body else json.dumps(row["body"])


def _words(*parts: object, between: str = "  ") -> str:
    return between.join(str(part) for part in parts if part)


def _table(value: Any) -> Mapping[str, Any]:
    """Return a value of an event that should be a table; an empty one if it is not."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _message(body: Mapping[str, Any]) -> str:
    text = content_text(body.get("content"))
    calls = [f"{call.get('name')} {call.get('arguments')}" for call in body.get("tool_calls") or ()]
    return f"{body.get('role')}: {' '.join([text, *calls]).strip()}"


def _pairs(body: Mapping[str, Any], *, key: str) -> str:
    """Return the values that are there with their names, nested ones as JSON.

    What only repeats the actor's own ``key`` is left out; ids and digests come last.
    """
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in sorted(body.items(), key=lambda pair: pair[0].endswith(_LAST))
        if value not in (None, "", [], {}, key)
    )
