"""``kelpie backup`` and ``kelpie restore``."""

from __future__ import annotations

import click

from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed, run_async


@click.command()
@framed()
@click.argument("target")
def backup(frame: Frame, *, target: str) -> None:
    """Copy the whole store, beside a running server too.

    Blobs are included. TARGET must not exist, and is on the machine of the process that holds
    the store.
    """
    path = str(frame.path(target))
    value = frame.ask(lambda api: api.post("/v1/store/backup", {"target": path}))
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"The backup is in {path}")


@click.command()
@framed(remote=False)
@click.argument("source")
def restore(frame: Frame, *, source: str) -> None:
    """Make a store from a backup; it starts held.

    The store of the settings must not exist yet. Held: nothing pending is executed before
    "kelpie store release".
    """
    settings = frame.settings()
    require_unheld(frame)
    value = run_async(_restore(frame, source))
    if frame.as_json:
        frame.terminal.data(value)
        return
    frame.terminal.say(f"The store is in {settings.store.path}, and is held.")
    frame.terminal.say("  next: kelpie approvals list, then kelpie store release")


def require_unheld(frame: Frame) -> None:
    """Return if no process holds the settings' store.

    Raises:
        CommandError: One does.
    """
    path = frame.settings().store.path
    holder = frame.world.read_holder(path)
    if holder is not None:
        message = f"process {holder.pid} holds {path}; stop it first"
        raise CommandError("store_held", message, next_step=f"kill {holder.pid}")


async def _restore(frame: Frame, source: str) -> dict[str, object]:
    return dict(await frame.world.restore(frame.settings(), frame.path(source)))
