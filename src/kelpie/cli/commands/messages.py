"""``kelpie messages``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import click

from kelpie.app.text import safe_text
from kelpie.cli.client import Api, Json, items_of
from kelpie.cli.frame import Frame, framed
from kelpie.cli.rows import find_agent
from kelpie.cli.talk import AgentFailedError, line_of

WAITING_STATUS: Final = 3


@click.group()
def messages() -> None:
    """Send messages to an agent, and read its conversation."""


@messages.command()
@framed()
@click.argument("agent")
@click.argument("text")
@click.option(
    "--stream", is_flag=True, help="Print each event as it comes; JSON lines with --json."
)
def send(frame: Frame, *, agent: str, text: str, stream: bool) -> int:
    """Send TEXT ("-": what stdin says) to AGENT and wait for the answer.

    Exit status 3 says that the agent waits for an approval.
    """
    content = sys.stdin.read() if text == "-" else text
    body = {"messages": [{"role": "user", "content": content}]}

    async def work(api: Api) -> str:
        found = await find_agent(api, agent)
        path = f"/v1/agents/{quote(found['id'], safe='')}/messages"
        if stream:
            return await _stream(frame, api, f"{path}/stream", body)
        answer = await api.post(path, body)
        if frame.as_json:
            frame.terminal.data(answer)
        else:
            for message in answer["messages"]:
                _print_message(frame, message)
        return str(answer["stop_reason"]["stop_reason"])

    if frame.ask(work, drive=True) != "requires_approval":
        return 0
    frame.terminal.say("The agent waits for an approval; next: kelpie approvals list")
    return WAITING_STATUS


async def _stream(frame: Frame, api: Api, path: str, body: Mapping[str, Any]) -> str:
    stop = ""
    async for event in api.stream("POST", path, body=body):
        if event.data == "[DONE]":
            break
        message = json.loads(event.data)
        stop = message.get("stop_reason", stop)
        if frame.as_json:
            frame.terminal.data(message)
        elif message.get("message_type") != "error_message":
            _print_message(frame, message)
        if message.get("message_type") == "error_message":
            raise AgentFailedError(message)
    return str(stop)


@messages.command("list")
@framed()
@click.argument("agent")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, help="At most so many.")
@click.option("--after", metavar="ID", help="Only what follows this message.")
def list_messages(frame: Frame, *, agent: str, limit: int, after: str | None) -> None:
    """Print the conversation of AGENT: the newest messages, oldest first."""

    async def work(api: Api) -> Json:
        found = await find_agent(api, agent)
        path = f"/v1/agents/{quote(found['id'], safe='')}/messages"
        order = "asc" if after else "desc"
        return await api.get(path, limit=limit, after=after, order=order)

    rows = items_of(frame.ask(work))
    rows = rows if after else rows[::-1]
    if frame.as_json:
        frame.terminal.data(rows)
        return
    for row in rows:
        _print_message(frame, row)


def _print_message(frame: Frame, message: Mapping[str, Any]) -> None:
    line = line_of(message)
    if line is None:
        return
    label, text = line
    indent = " " * (len(label) + 2)
    body = safe_text(text).replace("\n", f"\n{indent}")
    frame.terminal.line(f"{frame.terminal.style(label, 'bold')}: {body}")
