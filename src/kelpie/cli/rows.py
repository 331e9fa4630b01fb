"""Rows of the HTTP edge, as commands look them up and print them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from kelpie.cli.client import Api, items_of
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame
from kelpie.cli.output import local_time

_NAMESAKES_SHOWN: Final = 5


def text_of(row: Mapping[str, Any], key: str) -> str:
    """Return one value of a row as text for a table: times as local time, nothing as empty."""
    value = row.get(key)
    match value:
        case None:
            return ""
        case str():
            return value
        case int() if key.endswith("_ms") and not isinstance(value, bool):
            return local_time(value) if value else ""
        case _:
            return json.dumps(value)


def show_fields(frame: Frame, row: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Print those of the row's values that are there, each on a line with its name."""
    frame.terminal.fields(
        [(key.removesuffix("_ms"), text_of(row, key)) for key in keys if text_of(row, key)]
    )


def show_whole(frame: Frame, row: Mapping[str, Any]) -> None:
    """Print the whole answer: as JSON if that was asked for, else every value with its name."""
    if frame.as_json:
        frame.terminal.data(row)
    else:
        show_fields(frame, row, list(row))


def agent_actor(agent_id: str) -> str:
    """Return the name of an agent's actor within its tenant."""
    return f"agent/{agent_id}"


def plan_actor(plan_id: str) -> str:
    """Return the name of a plan's actor within its tenant."""
    return f"plan/{plan_id}"


async def find_agent(api: Api, reference: str) -> dict[str, Any]:
    """Return the agent of that id or that name.

    Raises:
        CommandError: There is none, or several have the name.
    """
    if reference.startswith("agent-"):
        found: dict[str, Any] = await api.get(f"/v1/agents/{quote(reference, safe='')}")
        return found
    rows = items_of(await api.get("/v1/agents/", name=reference, limit=_NAMESAKES_SHOWN))
    if len(rows) == 1:
        return rows[0]
    if rows:
        ids = ", ".join(text_of(row, "id") for row in rows)
        message = f"several agents are called {reference!r} ({ids}); give an id"
        raise CommandError("conflict", message, next_step="kelpie agents list")
    fields = {"kind": "agent", "name": reference}
    raise CommandError("not_found", f"agent {reference!r} does not exist", fields=fields)


async def find_namesakes(api: Api, agent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return other agents of the same name, a few at most."""
    rows = items_of(await api.get("/v1/agents/", name=text_of(agent, "name"), limit=3))
    return [row for row in rows if row.get("id") != agent.get("id")]
