"""``kelpie effects``."""

from __future__ import annotations

from typing import get_args
from urllib.parse import quote

import click

from kelpie.cli.client import items_of
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import show_whole, text_of
from kelpie.storage.records import EffectState


@click.group()
def effects() -> None:
    """See what was done outside, and settle what is unknown."""


@effects.command("list")
@framed()
@click.option("--state", type=click.Choice(get_args(EffectState)), help="Only in this state.")
@click.option("--actor", metavar="ACTOR", help="Only effects of this actor, type/key.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
@click.option("--after", metavar="ID", help="Only what follows this effect.")
def list_effects(
    frame: Frame, *, state: str | None, actor: str | None, limit: int, after: str | None
) -> None:
    """List effects: the newest ones, oldest first."""
    order = "asc" if after else "desc"
    answer = frame.ask(
        lambda api: api.get(
            "/v1/effects", state=state, actor=actor, limit=limit, after=after, order=order
        )
    )
    rows = items_of(answer, "effects")
    rows = rows if after else rows[::-1]
    if frame.as_json:
        frame.terminal.data(rows)
        return
    keys = ("effect_id", "state", "kind", "updated_ms", "summary")
    cells = [[text_of(row, key) for key in keys] for row in rows]
    frame.terminal.table(["ID", "STATE", "KIND", "CHANGED", "WHAT"], cells)


@effects.command()
@framed()
@click.argument("effect")
def show(frame: Frame, *, effect: str) -> None:
    """Show one effect through its whole life."""
    value = frame.ask(lambda api: api.get(f"/v1/effects/{quote(effect, safe='')}"))
    show_whole(frame, value)


@effects.command()
@framed()
@click.argument("effect")
@click.option("--done/--failed", "succeeded", default=None, help="What really became of it.")
@click.option("--reason", metavar="TEXT", required=True, help="How you know; for the record.")
def resolve(frame: Frame, *, effect: str, succeeded: bool | None, reason: str) -> None:
    """Say what became of an unknown effect."""
    if succeeded is None:
        raise click.UsageError("say --done or --failed")
    body = {"succeeded": succeeded, "reason": reason}
    path = f"/v1/effects/{quote(effect, safe='')}/resolve"
    value = frame.ask(lambda api: api.post(path, body))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{effect} is {text_of(value, 'state')}")
