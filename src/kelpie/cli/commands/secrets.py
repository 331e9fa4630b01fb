"""``kelpie secrets``: the age identity of a data directory."""

from __future__ import annotations

import click

from kelpie.cli.frame import Frame, framed
from kelpie.storage.age import IDENTITY_FILE, Identities


@click.group()
def secrets() -> None:
    """Keep the identity that packages and backups are for."""


def _identities(frame: Frame) -> Identities:
    return Identities(frame.settings().data_dir / IDENTITY_FILE)


@secrets.command()
@framed(remote=False)
def init(frame: Frame) -> None:
    """Make the identity, and print its recipient, for which others encrypt."""
    identities = _identities(frame)
    _show(frame, identities, identities.create())


@secrets.command()
@framed(remote=False)
def rotate(frame: Frame) -> None:
    """Use a new identity from now on; the old ones still decrypt."""
    identities = _identities(frame)
    _show(frame, identities, identities.rotate())


@secrets.command("show-recipient")
@framed(remote=False)
def show_recipient(frame: Frame) -> None:
    """Print the recipient that others encrypt for."""
    recipient = _identities(frame).recipient()
    if frame.as_json:
        frame.terminal.data({"recipient": recipient})
    else:
        frame.terminal.line(recipient)


def _show(frame: Frame, identities: Identities, recipient: str) -> None:
    if frame.as_json:
        frame.terminal.data({"recipient": recipient, "path": str(identities.path)})
        return
    frame.terminal.say(f"The identity is in {identities.path}. Keep a copy of it elsewhere:")
    frame.terminal.say("without it nobody reads what was encrypted for it.")
    frame.terminal.line(recipient)
