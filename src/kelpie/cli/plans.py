"""Plans: how one is asked for, printed, and followed while it is carried out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kelpie.app.card import render_diff
from kelpie.app.text import safe_line
from kelpie.cli.client import Api, Parameters
from kelpie.cli.errors import CommandError
from kelpie.cli.output import Terminal
from kelpie.cli.rows import plan_actor, text_of
from kelpie.core.limits import REQUEST_BODY_BYTES_MAX
from kelpie.core.quoting import quote_text

_SIGNS: Final = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}


async def make_plan(api: Api, file: Path, root: Path) -> dict[str, Any]:
    """Return the plan of a workspace file for the directory ``root``.

    A server elsewhere gets the file's text; one on this machine reads the file itself, and with
    it the files that it names.
    """
    _require_file(file)
    if api.is_local:
        _require_directory(root)
        body = {"workspace": str(file), "root": str(root)}
    else:
        body = {"yaml": _read_text(file), "root": str(root)}
    plan: dict[str, Any] = await api.post("/v1/plans", body)
    return plan


async def load_plan(api: Api, plan_id: str) -> dict[str, Any]:
    """Return a plan that was made before."""
    plan: dict[str, Any] = await api.get(f"/v1/plans/{quote(plan_id, safe='')}")
    return plan


async def follow_plan(api: Api, plan_id: str) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a plan from its first on, without end."""
    parameters: Parameters = {"actor": plan_actor(plan_id), "after": 0, "follow": "true"}
    stream = api.stream("GET", "/v1/events", parameters=parameters)
    try:
        async with aclosing(stream) as events:
            async for event in events:
                if event.data:
                    yield json.loads(event.data)
    except CommandError as error:
        # A server that died breaks the stream off; one that drains ends it. Both leave the plan.
        if error.code != "unavailable":
            raise
    raise CommandError(
        "unavailable",
        f"{api.where} stopped while the plan was under way",
        next_step=f"kelpie apply --plan {plan_id}",
    )


def print_plan(terminal: Terminal, plan: Mapping[str, Any]) -> None:
    """Print what a plan would do: a line per unit that changes, its diff, and the sum."""
    files = {file["path"]: file for file in plan.get("files") or ()}
    for unit in plan["units"]:
        if unit["action"] == "none":
            continue
        sign, color = _SIGNS[unit["action"]]
        head = f"{sign} {safe_line(unit['type'])} {safe_line(unit['path'])}"
        terminal.line(terminal.style(head, color))
        diff = str(files.get(unit["path"], {}).get("diff") or "")
        for line in render_diff(diff, terminal.width - 4, terminal.style):
            terminal.line(f"    {line}".rstrip())
    counts = plan["counts"]
    names = ("create", "update", "delete")
    parts = [f"{counts[name]} to {name}" for name in names if counts.get(name)]
    terminal.line(f"Plan {text_of(plan, 'plan_id')}: {', '.join(parts) or 'nothing to change'}.")


def describe_event(event: Mapping[str, Any]) -> str:
    """Return one line for people about an event of a plan; empty for those that say nothing."""
    body = event["body"]
    match event["kind"]:
        case "unit.started":
            return f"  {body['action']} {safe_line(body['path'])} ..."
        case "unit.finished":
            error = f": {safe_line(body['error'])}" if body.get("error") else ""
            return f"  {body['status']} {safe_line(body['path'])}{error}"
        case "plan.approved":
            return "Approved."
        case _:
            return ""


def _require_file(file: Path) -> None:
    """Return if a workspace file can be there; who reads it says what else is wrong with it.

    Raises:
        CommandError: There is none, or a directory.
    """
    if file.is_dir():
        raise CommandError("invalid_field", f"{file}: is a directory; name the YAML file in it")
    if not file.exists():
        raise CommandError("invalid_field", f"{file}: there is no such file")


def _require_directory(root: Path) -> None:
    if not root.is_dir():
        raise CommandError("invalid_field", f"--root: {quote_text(str(root))} is no directory")


def _read_text(file: Path) -> str:
    with file.open("rb") as opened:
        data = opened.read(REQUEST_BODY_BYTES_MAX + 1)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise CommandError("invalid_field", f"{file}: is not UTF-8 text") from None
    if len(data) > REQUEST_BODY_BYTES_MAX:
        message = f"{file}: a request is at most {REQUEST_BODY_BYTES_MAX:,} bytes"
        raise CommandError("limit_exceeded", message)
    return text
