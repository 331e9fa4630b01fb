"""``kelpie version``: the cheapest command; imports nothing beyond click."""

from __future__ import annotations

import click

from kelpie import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(*, as_json: bool) -> None:
    """Print the version."""
    click.echo(f'{{"version": "{__version__}"}}' if as_json else f"kelpie {__version__}")
