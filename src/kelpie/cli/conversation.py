"""A conversation on a terminal: lines in, the agent's stream out, Diff Cards in between.

The stream shows a turn as it grows. When the run stops for an approval, the cards are asked here
and the run is followed in the agent's event log, from where the stream ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import quote

from kelpie.app.text import safe_line, safe_text
from kelpie.cli.client import Api, Parameters, items_of
from kelpie.cli.decisions import answer_card
from kelpie.cli.errors import CommandError
from kelpie.cli.interrupts import Interrupts, WaitInterrupted
from kelpie.cli.keyboard import Keyboard
from kelpie.cli.output import Terminal
from kelpie.cli.rows import agent_actor
from kelpie.cli.talk import content_text, line_of

_EVENT_ROWS: Final = 1_000
_COLORS: Final = {"agent": "green", "calls": "cyan", "asks": "yellow", "error": "red"}


class Conversation:
    """One agent, one terminal.

    Invariant: everything of the log up to ``_cursor`` is on the screen, or older than the
    conversation.
    """

    def __init__(self, terminal: Terminal, api: Api, agent_id: str, interrupts: Interrupts) -> None:
        self._terminal = terminal
        self._api = api
        self._path = f"/v1/agents/{quote(agent_id, safe='')}/messages/stream"
        self._actor = agent_actor(agent_id)
        self._interrupts = interrupts
        self._keyboard = Keyboard()
        self._cursor = 0
        self._open_line = ("", "")

    async def run(self) -> None:
        """Answer what waits already, then take lines until the person leaves."""
        waiting = True
        while not self._interrupts.leaving:
            try:
                if waiting:
                    waiting = False
                    await self._interrupts.guard(self._resume())
                line = await self._interrupts.guard(self._next_line())
                if line is None:
                    self._terminal.say()
                    return
                if line.strip():
                    await self._interrupts.guard(self._turn(line))
            except WaitInterrupted:
                self._stop_waiting()
            except CommandError as error:
                self._close_line()
                if error.code in {"unavailable", "unauthorized", "not_found"}:
                    raise
                self._terminal.say(f"kelpie: {safe_text(error.message)}")
                waiting = error.code == "pending_approval"

    def _stop_waiting(self) -> None:
        self._close_line()
        self._terminal.say()  # the terminal has echoed ^C on the line of the prompt
        if not self._interrupts.leaving:
            self._terminal.say("Stopped waiting. Ctrl-C again leaves.")

    async def _next_line(self) -> str | None:
        self._terminal.prompt(self._terminal.style("you> ", "bold", stream=2))
        return await self._keyboard.line()

    async def _turn(self, text: str) -> None:
        """Send one message and stay with the run until it ends or waits for somebody else."""
        body = {
            "messages": [{"role": "user", "content": text}],
            "stream_tokens": True,
            "include_pings": True,
        }
        stop = ""
        async with aclosing(self._api.stream("POST", self._path, body=body)) as events:
            async for event in events:
                if event.data == "[DONE]":
                    break
                message = json.loads(event.data)
                stop = message.get("stop_reason") or stop
                self._show(message)
        self._close_line()
        await self._settle(stop)

    async def _resume(self) -> None:
        """Go on with a run that waits for a person since before this conversation."""
        if await self._waiting():
            await self._settle("requires_approval")

    async def _settle(self, stop: str) -> None:
        """Ask and follow until the run ends, or waits for an answer that was skipped."""
        if stop == "requires_approval":
            await self._skip_log()
        while stop == "requires_approval":
            if not await self._answer_cards():
                return
            stop = await self._follow()

    async def _waiting(self) -> list[dict[str, Any]]:
        answer = await self._api.get("/v1/approvals", state="waiting", limit=_EVENT_ROWS)
        return [row for row in items_of(answer, "effects") if row["actor"] == self._actor]

    async def _answer_cards(self) -> bool:
        """Ask about everything of this agent that waits; False if something is left waiting."""
        answered = True
        for approval in await self._waiting():
            if not await answer_card(self._terminal, self._api, self._keyboard, approval):
                answered = False
        return answered

    async def _follow(self) -> str:
        """Show the run from the log until it ends or asks again; return why it stopped."""
        parameters: Parameters = {"actor": self._actor, "after": self._cursor, "follow": "true"}
        stream = self._api.stream("GET", "/v1/events", parameters=parameters)
        async with aclosing(stream) as events:
            async for event in events:
                if not event.data:
                    continue
                row = json.loads(event.data)
                self._cursor = row["sequence"]
                stop = await self._take(row)
                if stop:
                    return stop
        message = f"{self._api.where} stopped while the run was under way"
        raise CommandError("unavailable", message, next_step="kelpie chat")

    async def _take(self, row: Mapping[str, Any]) -> str:
        """Deal with one event of the log; return why the run stopped, if it did."""
        body = row["body"]
        match row["kind"]:
            case "message":
                self._show_stored(body)
            case "run.waiting" if await self._still_waits(body["effect_id"]):
                return "requires_approval"
            case "run.finished":
                return self._finished(body["run"])
            case _:
                pass
        return ""

    async def _still_waits(self, effect_id: str) -> bool:
        approval = await self._api.get(f"/v1/approvals/{quote(effect_id, safe='')}")
        return bool(approval["state"] == "waiting")

    def _finished(self, run: Mapping[str, Any]) -> str:
        if run.get("error"):
            self._say_line("error", str(run["error"]))
        if self._terminal.as_json:
            reason = run.get("stop_reason")
            self._terminal.data({"message_type": "stop_reason", "stop_reason": reason})
        return str(run.get("stop_reason") or "end_turn")

    async def _skip_log(self) -> None:
        """Move the cursor behind everything that the stream has shown."""
        while True:
            answer = await self._api.get(
                "/v1/events", actor=self._actor, after=self._cursor, limit=_EVENT_ROWS
            )
            rows = items_of(answer, "events")
            self._cursor = rows[-1]["sequence"] if rows else self._cursor
            if len(rows) < _EVENT_ROWS:
                return

    # --- what is on the screen ----------------------------------------------------------------

    def _show(self, message: Mapping[str, Any]) -> None:
        """Show a message of the stream, or a piece of one."""
        if self._terminal.as_json:
            if message.get("message_type") != "ping":
                self._terminal.data(message)
            return
        line = line_of(message)
        if line is not None and line.label != "asks":
            identity = str(message.get("otid") or message.get("id") or "")
            self._append(line.label, identity, line.text)

    def _show_stored(self, message: Mapping[str, Any]) -> None:
        """Show a message of the log."""
        if message["role"] in {"user", "system"}:
            return
        if self._terminal.as_json:
            self._terminal.data(message)
            return
        text = content_text(message.get("content"))
        label = "returns" if message["role"] == "tool" else "agent"
        if text:
            self._say_line(label, text)
        for call in message.get("tool_calls") or ():
            self._say_line("calls", f"{call['name']} {call['arguments']}")

    def _append(self, label: str, identity: str, text: str) -> None:
        """Print a piece of a message, behind its earlier pieces if they are the last line."""
        if self._open_line != (label, identity):
            self._close_line()
            self._open_line = (label, identity)
            self._terminal.write(self._head(label))
        self._terminal.write(safe_text(text))

    def _say_line(self, label: str, text: str) -> None:
        self._close_line()
        self._terminal.line(self._head(label) + safe_text(text))

    def _close_line(self) -> None:
        if self._open_line != ("", ""):
            self._terminal.line()
        self._open_line = ("", "")

    def _head(self, label: str) -> str:
        return self._terminal.style(f"{safe_line(label)}> ", _COLORS.get(label, "dim"))
