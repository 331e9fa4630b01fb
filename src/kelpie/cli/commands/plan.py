"""``kelpie plan``."""

from __future__ import annotations

from typing import Final

import click

from kelpie.cli import USAGE_STATUS
from kelpie.cli.frame import Frame, framed
from kelpie.cli.plans import make_plan, print_plan

CHANGES_STATUS: Final = 2


@click.command()
@framed(bad_input_status=USAGE_STATUS)
@click.argument("file")
@click.option("--root", metavar="DIR", help="The directory it is about; else the one FILE is in.")
def plan(frame: Frame, *, file: str, root: str | None) -> int:
    """Show what a workspace FILE would change; change nothing.

    Exit status 0: nothing would change; 2: something would.
    """
    path = frame.path(file).resolve()
    directory = frame.path(root).resolve() if root else path.parent
    value = frame.ask(lambda api: make_plan(api, path, directory))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        print_plan(frame.terminal, value)
    return CHANGES_STATUS if value["has_changes"] else 0
