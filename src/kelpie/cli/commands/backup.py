"""``kelpie backup`` and ``kelpie restore``."""

from __future__ import annotations

import shlex

import click

from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed, run_async
from kelpie.cli.processes import name_process


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
    if settings.store.path.exists():
        message = (
            f"{settings.store.path}: there is a store already, and a restore makes a new one; "
            "move it away, or name another directory"
        )
        step = shlex.join(["kelpie", "restore", source, "--data-dir", "DIR"])
        raise CommandError("conflict", message, next_step=step)
    value = run_async(_restore(frame, source))
    if frame.as_json:
        frame.terminal.data(value)
        return
    frame.terminal.say(f"The store is in {settings.store.path}, and is held.")
    frame.terminal.say("  next: kelpie approvals list, then kelpie store release")


def require_unheld(frame: Frame) -> None:
    """Return if the settings' store is a file that no process holds.

    Raises:
        CommandError: It is a database, or a process holds it.
    """
    store = frame.settings().store
    if store.url is not None:
        message = f"{store.place} is a database; its own tools restore it: pg_restore"
        raise CommandError("unavailable", message, next_step="pg_restore --help")
    path = store.path
    holder = frame.world.read_holder(path)
    if holder is not None:
        message = f"{name_process(holder.pid)} holds {path}; stop it first"
        step = f"kill {holder.pid}" if holder.pid else "kelpie doctor"
        raise CommandError("store_held", message, next_step=step)


async def _restore(frame: Frame, source: str) -> dict[str, object]:
    return dict(await frame.world.restore(frame.settings(), frame.path(source)))
