"""Scenes of other names, words and commands than the one that `./dev demo` plays."""

from __future__ import annotations

from typing import Any

HARBOUR = "[harbour]\nberths = 14\ntide = 'low'\n"
HARBOUR_AFTER = "[harbour]\nberths = 15\ntide = 'high'\n"
SIGNAL = ["python3", "-c", "import time; time.sleep(1); open('raised.flag', 'w').write('up')"]
TIDY = ["sh", "-c", "sleep 0.8; tr a-z A-Z < log/ships.csv > log/new && mv log/new log/ships.csv"]


def harbour_scene() -> dict[str, Any]:
    """A harbour master, whose files lie in directories and have other endings."""
    return {
        "agent": "harbour master",
        "persona": "You keep the harbour's books.",
        "files": {"books/harbour.toml": HARBOUR, "log/ships.csv": "ada,3\nbrig grün,9\n"},
        "reading": {
            "prompt": "Look into books/harbour.toml, and into the link sea. What do you see?",
            "path": "books/harbour.toml",
            "holds": "berths = 14",
            "link": "sea",
        },
        "task": "Add a berth, raise the flag, put the ships in capitals.",
        "rewrite": {"path": "books/harbour.toml", "content": HARBOUR_AFTER},
        "once": {"argv": SIGNAL, "leaves": "raised.flag"},
        "again": {
            "argv": TIDY,
            "path": "log/ships.csv",
            "content": "ADA,3\nBRIG GRüN,9\n",
        },
        "plan": {
            "directories": [f"pier-{number}" for number in range(1, 31)],
            "pages": ["rope.txt", "crane.txt"],
            "page": "{page} of {directory}\n",
            "existing": {"pier-7/rope.txt": "worn out\n", "wreck": "to be removed\n"},
            "absent": ["wreck"],
        },
        "script": {"chunk_chars": 5, "steps": _steps()},
    }


def _steps() -> list[dict[str, Any]]:
    def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
        return [{"name": name, "arguments": arguments}]

    def after(tool: str, text: str) -> dict[str, str]:
        return {"role": "tool", "tool": tool, "contains": text}

    return [
        {
            "when": {"role": "user", "contains": "Look into"},
            "tool_calls": call("read_file", path="books/harbour.toml"),
        },
        {
            "when": after("read_file", "berths"),
            "tool_calls": call("read_file", path="sea"),
        },
        {"when": after("read_file", "Failed"), "text": "Fourteen berths, and no sea from here."},
        {
            "when": {"role": "user", "contains": "Add a berth"},
            "tool_calls": call("write_file", path="books/harbour.toml", content=HARBOUR_AFTER),
        },
        {
            "when": after("write_file", "Wrote"),
            "tool_calls": call("run_command", argv=SIGNAL, timeout_s=1),
        },
        {
            "when": after("run_command", "Unknown outcome"),
            "tool_calls": call("run_command", argv=TIDY, timeout_s=9, idempotent=True),
        },
        {
            "when": after("run_command", "landed"),
            "text": "Done, but for the flag: nobody knows whether it is up.",
        },
    ]
