"""``kelpie approvals``."""

from __future__ import annotations

import time
from typing import Any, get_args
from urllib.parse import quote

import click

from kelpie.app.card import render_card
from kelpie.cli.client import Json, items_of
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import show_fields, text_of
from kelpie.storage.records import EffectState


@click.group()
def approvals() -> None:
    """See what waits for a person, and answer it."""


@approvals.command("list")
@framed()
@click.option(
    "--state",
    type=click.Choice(get_args(EffectState)),
    default="waiting",
    help="The state to list; waiting if not given.",
)
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
def list_approvals(frame: Frame, *, state: str, limit: int) -> None:
    """List what waits for an answer."""
    answer = frame.ask(lambda api: api.get("/v1/approvals", state=state, limit=limit))
    rows = items_of(answer, "effects")
    if frame.as_json:
        frame.terminal.data(rows)
        return
    if not rows:
        frame.terminal.say(f"Nothing is {state}.")
        return
    cells = [
        [
            text_of(row, "effect_id"),
            text_of(row, "due_ms"),
            text_of(row, "actor"),
            text_of(row["card"] or {}, "title") or text_of(row, "summary"),
        ]
        for row in rows
    ]
    frame.terminal.table(["ID", "EXPIRES", "ACTOR", "WHAT"], cells)


@approvals.command()
@framed()
@click.argument("approval")
def show(frame: Frame, *, approval: str) -> None:
    """Show one Diff Card: what will happen, why it is asked, how to undo it."""
    value = frame.ask(lambda api: api.get(f"/v1/approvals/{quote(approval, safe='')}"))
    if frame.as_json:
        frame.terminal.data(value)
        return
    print_card(frame, value)
    show_fields(frame, value, ("state", "actor", "digest", "created_ms"))


def print_card(frame: Frame, approval: dict[str, Any]) -> None:
    """Print a Diff Card to stdout."""
    terminal = frame.terminal
    now_ms = time.time_ns() // 1_000_000
    for line in render_card(approval, width=terminal.width, now_ms=now_ms, paint=terminal.style):
        terminal.line(line)


@approvals.command()
@framed()
@click.argument("approval")
@click.option("--digest", metavar="DIGEST", help="Approve only if this is what is asked.")
@click.option("--reason", metavar="TEXT", default="", help="For the record.")
def approve(frame: Frame, *, approval: str, digest: str | None, reason: str) -> None:
    """Say yes to exactly what the card shows."""
    body = {"reason": reason} | ({"digest": digest} if digest else {})
    _decide(frame, approval, "approve", body)


@approvals.command()
@framed()
@click.argument("approval")
@click.option("--reason", metavar="TEXT", default="", help="For the record, and for the agent.")
def deny(frame: Frame, *, approval: str, reason: str) -> None:
    """Say no."""
    _decide(frame, approval, "deny", {"reason": reason})


def _decide(frame: Frame, approval: str, verb: str, body: dict[str, Any]) -> None:
    path = f"/v1/approvals/{quote(approval, safe='')}/{verb}"
    value: Json = frame.ask(lambda api: api.post(path, body))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{approval} is {text_of(value, 'state')}")
