"""``kelpie events``."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from kelpie.cli.client import Api, Parameters, items_of
from kelpie.cli.eventlog import EventLines
from kelpie.cli.frame import Frame, framed

_PAGE_ROWS: Final = 1_000


@click.group()
def events() -> None:
    """Follow the event log."""


@events.command()
@framed()
@click.option("--actor", metavar="ACTOR", help="Only events of this actor, type/key.")
@click.option("--after", type=click.IntRange(0), default=0, help="Only what follows this cursor.")
@click.option("--follow", "-f", is_flag=True, help="Go on as events come, until Ctrl-C.")
def tail(frame: Frame, *, actor: str | None, after: int, follow: bool) -> None:
    """Print events, oldest first; JSON lines with --json."""
    lines = EventLines(frame.terminal)

    def show_event(row: dict[str, Any]) -> None:
        if frame.as_json:
            frame.terminal.data(row)
        else:
            lines.show(row, cursor_of(row, actor))

    async def work(api: Api) -> None:
        cursor = after
        while True:
            answer = await api.get("/v1/events", actor=actor, after=cursor, limit=_PAGE_ROWS)
            rows = items_of(answer, "events")
            for row in rows:
                show_event(row)
                cursor = cursor_of(row, actor)
            if len(rows) < _PAGE_ROWS:
                break
        if not follow:
            return
        parameters: Parameters = {"actor": actor, "after": cursor, "follow": "true"}
        async for event in api.stream("GET", "/v1/events", parameters=parameters):
            if event.data:
                show_event(json.loads(event.data))

    frame.ask(work)


def cursor_of(row: dict[str, Any], actor: str | None) -> int:
    """Return the cursor after an event: its place in its actor's log, or in everybody's."""
    return int(row["sequence"] if actor else row["position"])
