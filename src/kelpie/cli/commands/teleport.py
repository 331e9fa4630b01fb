"""``kelpie teleport``: agents and other actors as packages."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import click

from kelpie.cli.client import Api, items_of
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import agent_actor, find_agent, text_of

_STREAM = "-"


@click.group()
def teleport() -> None:
    """Move an agent to another store, as one file."""


@teleport.command()
@framed()
@click.argument("agent")
@click.option("--to", "target", metavar="FILE", required=True, help="A new file; - is stdout.")
@click.option("--checkpoint", is_flag=True, help="A copy: the agent goes on here.")
@click.option("--encrypt", is_flag=True, help="For this data directory's own identity.")
@click.option(
    "--recipient",
    "recipients",
    metavar="AGE1",
    multiple=True,
    help="Encrypt for this recipient; may be given again.",
)
def export(
    frame: Frame,
    *,
    agent: str,
    target: str,
    checkpoint: bool,
    encrypt: bool,
    recipients: tuple[str, ...],
) -> None:
    """Seal AGENT, or an actor type/key, and write all of it to a file.

    It waits for a running turn or effect. From then on the agent takes no turn here, and what is
    sent to it waits, until "kelpie teleport confirm" or "kelpie teleport abort". An export that
    was interrupted is repeated with the same command.
    """
    if target == _STREAM and frame.as_json:
        raise click.UsageError("--to - writes the package to stdout; leave --json out")
    with _file_for(frame, target) as path:
        body: dict[str, Any] = {"target": str(path), "checkpoint": checkpoint}
        if encrypt or recipients:
            body["recipients"] = list(recipients)

        async def send(api: Api) -> Any:
            body["actor"] = await _name(api, agent)
            return await api.post("/v1/teleport/export", body)

        value = frame.ask(send)
        if target == _STREAM:
            with path.open("rb") as source:
                shutil.copyfileobj(source, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        elif frame.as_json:
            frame.terminal.data(value)
    for name in value["left_out"]:
        frame.terminal.say(f"Left out, since it is no file, directory or link: {name}")
    if not frame.as_json:
        frame.terminal.say(f"Package {value['package']} holds {value['actor']}: {value['digest']}")
        if not checkpoint:
            frame.terminal.say("  next: import it elsewhere, then kelpie teleport confirm here")


@contextlib.contextmanager
def _file_for(frame: Frame, target: str) -> Generator[Path]:
    if target != _STREAM:
        yield frame.path(target)
        return
    with tempfile.TemporaryDirectory(prefix="kelpie-") as folder:
        yield Path(folder) / "package"


async def _name(api: Api, agent: str) -> str:
    """Return ``type/key``; an exported agent is found by its id."""
    if "/" in agent:
        return agent
    if agent.startswith("agent-"):
        return agent_actor(agent)
    found = await find_agent(api, agent)
    return agent_actor(str(found["id"]))


@teleport.command("import")
@framed()
@click.argument("source", metavar="FILE")
@click.option("--workspace", metavar="DIR", help="Where the workspace shall lie.")
def import_(frame: Frame, *, source: str, workspace: str | None) -> None:
    """Write the agent of a package, held: it goes on after "kelpie teleport release".

    FILE - is stdin. The workspace is made where it was, or in DIR; what is there already must be
    the same. An encrypted package needs its identity in this data directory.
    """
    body: dict[str, Any] = {}
    if workspace is not None:
        body["workspace"] = str(frame.path(workspace))
    with _file_for(frame, source) as path:
        if source == _STREAM:
            with path.open("xb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        body["source"] = str(path)
        value = frame.ask(lambda api: api.post("/v1/teleport/import", body))
    if frame.as_json:
        frame.terminal.data(value)
        return
    for warning in value["warnings"]:
        frame.terminal.say(f"Warning: {warning}")
    frame.terminal.say(f"{value['actor']} is here, and is held; confirm its export at its source,")
    frame.terminal.say(f"  next: kelpie teleport release {_short(value['actor'])}")


def _short(actor: str) -> str:
    return actor.removeprefix("agent/")


@teleport.command("list")
@framed()
def list_exports(frame: Frame) -> None:
    """List exports that were not taken back."""
    rows = items_of(frame.ask(lambda api: api.get("/v1/teleport/exports")), "exports")
    if frame.as_json:
        frame.terminal.data(rows)
        return
    keys = ("state", "actor", "package", "destination")
    cells = [[text_of(row, key) for key in keys] for row in rows]
    frame.terminal.table(["STATE", "ACTOR", "PACKAGE", "DESTINATION"], cells)


@teleport.command()
@framed()
@click.argument("agent")
def abort(frame: Frame, *, agent: str) -> None:
    """Take an export back: the agent goes on here. Throw its package away first."""
    _settle(frame, agent, "abort", "goes on here.")


@teleport.command()
@framed()
@click.argument("agent")
@click.option("--yes", is_flag=True, help="Do not ask.")
def confirm(frame: Frame, *, agent: str, yes: bool) -> None:
    """End an export whose package arrived: the agent is removed here."""
    if not yes:
        if not frame.terminal.interactive:
            raise click.UsageError("the agent is removed here; add --yes")
        click.confirm(
            f"Did the package of {agent} arrive? It is removed here", abort=True, err=True
        )
    _settle(frame, agent, "confirm", "is elsewhere now.")


@teleport.command()
@framed()
@click.argument("agent")
def release(frame: Frame, *, agent: str) -> None:
    """Let an agent that arrived go on: its messages, timers and effects."""
    _settle(frame, agent, "release", "goes on.")


def _settle(frame: Frame, agent: str, verb: str, said: str) -> None:
    async def send(api: Api) -> Any:
        return await api.post(f"/v1/teleport/{verb}", {"actor": await _name(api, agent)})

    value = frame.ask(send)
    if frame.as_json:
        frame.terminal.data(value)
    else:
        frame.terminal.say(f"{value['actor']} {said}")
