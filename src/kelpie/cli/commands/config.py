"""``kelpie config``."""

from __future__ import annotations

import json

import click

from kelpie.cli.frame import Frame, framed
from kelpie.settings.toml_text import dump_toml, list_values, plain_value


@click.group()
def config() -> None:
    """Show the settings and where each came from."""


@config.command()
@framed(remote=False)
@click.option("--origin", is_flag=True, help="Say where each value came from.")
def show(frame: Frame, *, origin: bool) -> None:
    """Print the settings in force; secrets as references. Without --origin it is a TOML file."""
    settings = frame.settings()
    for notice in settings.notices:
        frame.terminal.say(f"kelpie: {notice}")
    values = {key: plain_value(value) for key, value in list_values(settings)}
    origins = {key: str(settings.origin(key)) for key in values}
    if frame.as_json and origin:
        frame.terminal.data(
            {key: {"value": value, "origin": origins[key]} for key, value in values.items()}
        )
    elif frame.as_json:
        frame.terminal.data(values)
    elif origin:
        cells = [[key, json.dumps(value), origins[key]] for key, value in values.items()]
        frame.terminal.table(["SETTING", "VALUE", "ORIGIN"], cells)
    else:
        frame.terminal.write(dump_toml(settings))
