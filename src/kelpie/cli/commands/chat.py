"""``kelpie chat``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from kelpie.app.text import safe_line
from kelpie.cli import INTERRUPTED_STATUS
from kelpie.cli.client import Api, items_of
from kelpie.cli.commands.agents import agent_body
from kelpie.cli.conversation import Conversation
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed
from kelpie.cli.interrupts import Interrupts
from kelpie.cli.rows import find_agent


@click.command()
@framed()
@click.argument("agent", default="kelpie")
@click.option("--workspace", metavar="DIR", help="The new agent's directory.")
@click.option("--model", metavar="HANDLE", help="The new agent's model, as provider/name.")
def chat(frame: Frame, *, agent: str, workspace: str | None, model: str | None) -> int:
    """Talk with an agent, and answer what it asks.

    AGENT is a name or an id; a name that is new becomes a new agent, with the directory and the
    model that the options name.
    Diff Cards appear in the conversation and are answered there. Ctrl-C ends a wait; a second
    one leaves, and so does Ctrl-D. What runs goes on when you have left a server.
    """

    async def work(api: Api) -> int:
        wanted = agent_body(frame, name=agent, workspace=workspace, model=model)
        found = await _find_or_create(api, agent, wanted)
        place = f", in {safe_line(found['workspace'])}" if found.get("workspace") else ""
        frame.terminal.say(
            f"{safe_line(found['name'])} ({safe_line(found['model'])}){place}, "
            f"through {api.where}. Ctrl-D leaves."
        )
        interrupts = Interrupts()
        async with interrupts.installed():
            conversation = Conversation(frame.terminal, api, found["id"], interrupts)
            await conversation.run()
        return INTERRUPTED_STATUS if interrupts.leaving else 0

    return frame.ask(work, drive=True)


async def _find_or_create(api: Api, agent: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the agent called so, new if need be, and as the options say.

    Raises:
        CommandError: The agent exists, with another workspace or model than is asked for.
    """
    if not agent.startswith("agent-"):
        known = items_of(await api.get("/v1/agents/", name=agent, limit=1))
        if not known:
            created: dict[str, Any] = await api.post("/v1/agents/", wanted)
            return created
    found = await find_agent(api, agent)
    for option in ("workspace", "model"):
        if wanted.get(option, found.get(option)) != found.get(option):
            message = (
                f"--{option}: {agent!r} exists, with {found.get(option) or 'none'}; "
                "leave the option out, or name a new agent"
            )
            words = ["kelpie", "chat", "NAME", f"--{option}", wanted[option]]
            if option == "model":
                words[1:3] = ["agents", "update", found["id"]]
            raise CommandError("conflict", message, next_step=shlex.join(words))
    return found
