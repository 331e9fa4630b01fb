"""``kelpie audit``."""

from __future__ import annotations

import click

from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import show_whole


@click.group()
def audit() -> None:
    """Verify the audit chains."""


@audit.command()
@framed()
def verify(frame: Frame) -> int:
    """Recompute every hash chain, and say what that cannot prove. Exit status 1: one is broken."""
    value = frame.ask(lambda api: api.get("/v1/audit/verify"))
    show_whole(frame, value)
    return 0 if value["ok"] else 1
