"""The words that scripts of the scripted model are made of."""

from __future__ import annotations

from typing import Any

Step = dict[str, Any]

AFTER = "after\n"
BEFORE = "before\n"
FILE = "notes.txt"


def say(text: str, **fields: Any) -> Step:
    """A step that answers any call that no earlier step has answered."""
    return {"when": {}, "text": text, **fields}


def on(heard: str, **fields: Any) -> Step:
    """A step that answers a user's message that contains `heard`."""
    return {"when": {"role": "user", "contains": heard}, **fields}


def then(heard: str, tool: str, **fields: Any) -> Step:
    """A step that answers the return of a tool, below a user's message that contains `heard`."""
    return {"when": {"role": "tool", "tool": tool, "user_contains": heard}, **fields}


def call(name: str, **arguments: Any) -> Step:
    """A call of a tool."""
    return {"name": name, "arguments": arguments}


def write(path: str = FILE, content: str = AFTER) -> Step:
    """A call that rewrites a file, which a person is asked about."""
    return call("write_file", path=path, content=content)


def conversation() -> tuple[Step, ...]:
    """Steps that answer "write" with a red call, "read" with a green one, and all else at once."""
    return (
        on("write", tool_calls=[write()]),
        on("read", tool_calls=[call("read_file", path=FILE)]),
        on("slow", text="one two three four five six", chunk_delay_ms=150),
        {"when": {"role": "tool"}, "text": "That is done."},
        say("Hello to you."),
    )
