"""``kelpie calls``."""

from __future__ import annotations

from urllib.parse import quote

import click

from kelpie.cli.client import items_of
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import show_whole, text_of

STATES = ("pending", "completed", "failed", "cancelled", "dead")


@click.group()
def calls() -> None:
    """See what became of submitted calls, and take them back."""


def _path(call: str, verb: str = "") -> str:
    named = f"/v1/calls/{quote(call, safe='')}"
    return f"{named}/{verb}" if verb else named


@calls.command("list")
@framed()
@click.option("--actor", metavar="ACTOR", help="Only calls of this actor, type/key.")
@click.option("--state", type=click.Choice(STATES), help="Only calls in this state.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
@click.option("--after", metavar="CALL", help="Only what follows this call, by id.")
def list_calls(
    frame: Frame, *, actor: str | None, state: str | None, limit: int, after: str | None
) -> None:
    """List submitted calls, oldest first."""
    answer = frame.ask(
        lambda api: api.get("/v1/calls", actor=actor, state=state, limit=limit, after=after)
    )
    rows = items_of(answer, "calls")
    if frame.as_json:
        frame.terminal.data(rows)
        return
    keys = ("call_id", "created_ms", "state", "actor", "method")
    cells = [[text_of(row, key) for key in keys] for row in rows]
    frame.terminal.table(["ID", "SINCE", "STATE", "ACTOR", "METHOD"], cells)


@calls.command()
@framed()
@click.argument("call")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 60),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for its end.",
)
def show(frame: Frame, *, call: str, wait_s: float) -> None:
    """Show one submitted call: its state, and its result or its error."""
    show_whole(frame, frame.ask(lambda api: api.get(_path(call), wait_s=f"{wait_s:g}")))


@calls.command()
@framed()
@click.argument("call")
def cancel(frame: Frame, *, call: str) -> None:
    """Take a call back that has not begun: it never runs."""
    value = frame.ask(lambda api: api.post(_path(call, "cancel")))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{call} is {text_of(value, 'state')}")
