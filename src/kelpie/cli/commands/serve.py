"""``kelpie serve``."""

from __future__ import annotations

import os
import sys

import click

from kelpie.cli.frame import Frame, framed, run_async
from kelpie.cli.world import ServedProgram, ServerReady
from kelpie.settings import require_startable


@click.command()
@framed(remote=False)
@click.argument("app", required=False)
@click.option("--host", metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", metavar="PORT", help="Port to listen on.")
@click.option("--store", metavar="STORE", help="A path, or postgresql://user@host/database.")
@click.option("--join", metavar="HOST:PORT", help="Where another node of the database answers.")
def serve(
    frame: Frame,
    *,
    app: str | None,
    host: str | None,
    port: str | None,
    store: str | None,
    join: str | None,
) -> int:
    """Run the server until it is told to stop.

    APP is a Python file, or module:attribute, with Actor classes to host: those of its list named
    "actors", else all in its namespace.

    SIGTERM and Ctrl-C stop it: running turns finish, and what is pending resumes at the next
    start. A handler that swallows its cancellation is left after 20 s: exit status 75, and the log
    names it. An address beyond loopback needs an API key.
    """
    flags = {"server.host": host, "server.port": port, "store.url": store, "cluster.join": join}
    settings = frame.settings(flags)
    require_startable(settings, frame.world.environment)
    for notice in settings.notices:
        frame.terminal.say(f"kelpie: {notice}")

    program = ServedProgram(app, frame.world.cwd) if app else None

    def announce(ready: ServerReady) -> None:
        if frame.as_json:
            frame.terminal.data({"url": ready.url, "held": ready.held})
            return
        frame.terminal.say(f"Kelpie answers on {ready.url} (its API is described at /docs).")
        if ready.held:
            frame.terminal.say("  The store is held after a restore: kelpie store release")

    async def run() -> int:
        status = await frame.world.run_server(settings, announce, program)
        if status:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # a handler that will not end would keep the loop from closing
        return status

    return run_async(run())
