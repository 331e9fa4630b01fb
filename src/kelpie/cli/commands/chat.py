"""``kelpie chat``."""

from __future__ import annotations

import click

from kelpie.cli import INTERRUPTED_STATUS
from kelpie.cli.client import Api, items_of
from kelpie.cli.commands.agents import agent_body
from kelpie.cli.conversation import Conversation
from kelpie.cli.frame import Frame, framed
from kelpie.cli.interrupts import Interrupts
from kelpie.cli.rows import find_agent
from kelpie.cli.text import safe_line


@click.command()
@framed()
@click.argument("agent", default="kelpie")
@click.option("--workspace", metavar="DIR", help="Create AGENT with this directory if it is new.")
@click.option("--model", metavar="HANDLE", help="The new agent's model, as provider/name.")
def chat(frame: Frame, *, agent: str, workspace: str | None, model: str | None) -> int:
    """Talk with an agent, and answer what it asks.

    AGENT is a name or an id; a name that is new becomes a new agent.
    Diff Cards appear in the conversation and are answered there. Ctrl-C ends a wait; a second
    one leaves, and so does Ctrl-D. What runs goes on when you have left a server.
    """

    async def work(api: Api) -> int:
        found = None
        if not agent.startswith("agent-"):
            known = items_of(await api.get("/v1/agents/", name=agent, limit=1))
            if not known:
                body = agent_body(frame, name=agent, workspace=workspace, model=model)
                found = await api.post("/v1/agents/", body)
        found = found or await find_agent(api, agent)
        frame.terminal.say(
            f"{safe_line(found['name'])} ({safe_line(found['model'])}), through {api.where}. "
            "Ctrl-D leaves."
        )
        interrupts = Interrupts()
        async with interrupts.installed():
            conversation = Conversation(frame.terminal, api, found["id"], interrupts)
            await conversation.run()
        return INTERRUPTED_STATUS if interrupts.leaving else 0

    return frame.ask(work, drive=True)
