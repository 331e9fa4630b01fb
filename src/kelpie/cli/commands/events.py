"""``kelpie events``."""

from __future__ import annotations

import json
from typing import Any, Final

import click

from kelpie.app.text import clip, safe_line
from kelpie.cli.client import Api, items_of
from kelpie.cli.frame import Frame, framed
from kelpie.cli.output import local_time

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

    async def work(api: Api) -> None:
        cursor = after
        while True:
            answer = await api.get("/v1/events", actor=actor, after=cursor, limit=_PAGE_ROWS)
            rows = items_of(answer, "events")
            for row in rows:
                _print_event(frame, row)
                cursor = cursor_of(row, actor)
            if len(rows) < _PAGE_ROWS:
                break
        if follow:
            await _follow(frame, api, actor, cursor)

    frame.ask(work)


async def _follow(frame: Frame, api: Api, actor: str | None, cursor: int) -> None:
    parameters = {"actor": actor, "after": cursor, "follow": "true"}
    async for event in api.stream("GET", "/v1/events", parameters=parameters):
        if event.data:
            _print_event(frame, json.loads(event.data))


def cursor_of(row: dict[str, Any], actor: str | None) -> int:
    """Return the cursor after an event: its place in its actor's log, or in everybody's."""
    return int(row["sequence"] if actor else row["position"])


def _print_event(frame: Frame, row: dict[str, Any]) -> None:
    terminal = frame.terminal
    if frame.as_json:
        terminal.data(row)
        return
    head = f"{row['position']:>6}  {local_time(row['at_ms'])}  "
    kind = safe_line(str(row["kind"]))
    rest = f"  {safe_line(str(row['actor']))}  {safe_line(json.dumps(row['body']))}"
    room = terminal.width - len(head) - len(kind)
    terminal.line(head + terminal.style(kind, "cyan") + clip(rest, max(room, 20)))
