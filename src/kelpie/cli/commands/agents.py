"""``kelpie agents``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import click

from kelpie.app.text import safe_line
from kelpie.cli.client import Api, items_of
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import find_agent, find_namesakes, show_fields, text_of


@click.group()
def agents() -> None:
    """Create, list, show, change and delete agents."""


@agents.command()
@framed()
@click.argument("name")
@click.option("--workspace", metavar="DIR", help="The directory its tools see.")
@click.option("--model", metavar="HANDLE", help="Model, as provider/name.")
@click.option("--system", metavar="TEXT", help="Instructions.")
@click.option("--tool", "tools", multiple=True, metavar="NAME", help="A tool more; repeatable.")
@click.option(
    "--block", "blocks", multiple=True, metavar="LABEL=VALUE", help="A core block; repeatable."
)
def create(
    frame: Frame,
    *,
    name: str,
    workspace: str | None,
    model: str | None,
    system: str | None,
    tools: tuple[str, ...],
    blocks: tuple[str, ...],
) -> None:
    """Create an agent, and print its id."""
    body = agent_body(
        frame,
        name=name,
        workspace=workspace,
        model=model,
        system=system,
        tools=tools,
        blocks=blocks,
    )

    async def work(api: Api) -> tuple[Any, list[dict[str, Any]]]:
        made = await api.post("/v1/agents/", body)
        return made, await find_namesakes(api, made)

    agent, namesakes = frame.ask(work)
    if frame.as_json:
        frame.terminal.data(agent)
    else:
        frame.terminal.line(text_of(agent, "id"))
    _warn_of_namesakes(frame, agent, namesakes)


def _warn_of_namesakes(
    frame: Frame, agent: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]
) -> None:
    """Say that a name no longer tells which agent is meant."""
    if not namesakes:
        return
    name, ids = safe_line(text_of(agent, "name")), ", ".join(text_of(a, "id") for a in namesakes)
    frame.terminal.say(
        f"kelpie: another agent is called {name!r} as well ({ids}): "
        f"tell commands the id, or kelpie agents update {text_of(agent, 'id')} --name NAME"
    )


def agent_body(
    frame: Frame,
    *,
    name: str,
    workspace: str | None = None,
    model: str | None = None,
    system: str | None = None,
    tools: tuple[str, ...] = (),
    blocks: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the request that creates an agent; the workspace's path becomes absolute."""
    body: dict[str, Any] = {"name": name}
    if workspace is not None:
        body["workspace"] = str(frame.path(workspace).resolve())
    given = {"model": model, "system": system, "tools": list(tools) or None}
    body |= {field: value for field, value in given.items() if value is not None}
    pairs = [block.partition("=") for block in blocks]
    for label, equals, _ in pairs:
        if not label or not equals:
            raise CommandError("invalid_field", f"--block: {label!r} must read LABEL=VALUE")
    if pairs:
        body["memory_blocks"] = [{"label": label, "value": value} for label, _, value in pairs]
    return body


@agents.command("list")
@framed()
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
@click.option("--after", metavar="ID", help="Only what follows this agent.")
def list_agents(frame: Frame, *, limit: int, after: str | None) -> None:
    """List agents."""
    rows = items_of(frame.ask(lambda api: api.get("/v1/agents/", limit=limit, after=after)))
    if frame.as_json:
        frame.terminal.data(rows)
        return
    cells = [[text_of(row, key) for key in ("id", "model", "name")] for row in rows]
    frame.terminal.table(["ID", "MODEL", "NAME"], cells)


@agents.command()
@framed()
@click.argument("agent")
def show(frame: Frame, *, agent: str) -> None:
    """Show one agent, by id or name."""

    async def work(api: Api) -> Any:
        found = await find_agent(api, agent)
        return await api.get(f"/v1/agents/{quote(found['id'], safe='')}")

    value = frame.ask(work)
    if frame.as_json:
        frame.terminal.data(value)
        return
    show_fields(
        frame, value, ("id", "name", "model", "workspace", "created_at", "last_stop_reason")
    )
    tools = ", ".join(text_of(tool, "name") for tool in value.get("tools") or ())
    blocks = [
        (text_of(block, "label"), text_of(block, "value")) for block in value.get("blocks", ())
    ]
    frame.terminal.fields([("tools", tools), *((f"block {label}", text) for label, text in blocks)])


@agents.command()
@framed()
@click.argument("agent")
@click.option("--name", metavar="NAME", help="Its new name.")
@click.option("--model", metavar="HANDLE", help="Its new model, as provider/name.")
@click.option("--system", metavar="TEXT", help="Its new instructions.")
def update(
    frame: Frame, *, agent: str, name: str | None, model: str | None, system: str | None
) -> None:
    """Change an agent's name, model or instructions.

    The rest of it stays as it is. A run that is under way asks the new model at its next step.
    """
    given = {"name": name, "model": model, "system": system}
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise click.UsageError("say what to change: --name, --model or --system")

    async def work(api: Api) -> tuple[Any, list[dict[str, Any]]]:
        found = await find_agent(api, agent)
        changed = await api.patch(f"/v1/agents/{quote(found['id'], safe='')}", changes)
        return changed, await find_namesakes(api, changed) if name is not None else []

    value, namesakes = frame.ask(work)
    if frame.as_json:
        frame.terminal.data(value)
    else:
        show_fields(frame, value, ("id", "name", "model", "system"))
    _warn_of_namesakes(frame, value, namesakes)


@agents.command()
@framed()
@click.argument("agent")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(frame: Frame, *, agent: str, yes: bool) -> None:
    """Delete an agent and its conversation."""
    if not yes:
        if not frame.terminal.interactive:
            raise click.UsageError("deleting cannot be undone; add --yes")
        click.confirm(f"Delete {agent} and its conversation?", abort=True, err=True)

    async def work(api: Api) -> str:
        found = await find_agent(api, agent)
        await api.delete(f"/v1/agents/{quote(found['id'], safe='')}")
        return str(found["id"])

    deleted = frame.ask(work)
    if frame.as_json:
        frame.terminal.data({"id": deleted, "deleted": True})
    else:
        frame.terminal.say(f"deleted {deleted}")
