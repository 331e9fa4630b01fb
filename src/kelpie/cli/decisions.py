"""A Diff Card is shown, a person answers, the answer goes out. What chat and apply share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import quote

from kelpie.app.card import render_card
from kelpie.cli.client import Api
from kelpie.cli.errors import CommandError
from kelpie.cli.keyboard import Keyboard
from kelpie.cli.output import Terminal

Answer = Literal["approve", "deny", "skip"]

_ANSWERS: Final[Mapping[str, Answer]] = {
    "a": "approve",
    "approve": "approve",
    "d": "deny",
    "deny": "deny",
    "s": "skip",
    "skip": "skip",
}
_ASKS_MAX: Final = 100


async def answer_card(
    terminal: Terminal, api: Api, keyboard: Keyboard, approval: Mapping[str, Any]
) -> bool:
    """Show a waiting approval's card on stderr, ask, and send the answer; False when skipped."""
    for line in _card_lines(terminal, approval):
        terminal.say(line)
    answer = await _ask(terminal, keyboard)
    if answer == "skip":
        terminal.say(f"It goes on waiting: kelpie approvals approve {approval['effect_id']}")
        return False
    await decide(api, approval, answer)
    return True


async def decide(
    api: Api, approval: Mapping[str, Any], answer: Literal["approve", "deny"], *, reason: str = ""
) -> None:
    """Send an answer that is bound to what the card showed.

    Somebody else's earlier answer, or the question's expiry, is no error here: what follows is
    the same.
    """
    body = {"reason": reason}
    if answer == "approve":
        body["digest"] = str(approval["digest"])
    try:
        await api.post(f"/v1/approvals/{quote(str(approval['effect_id']), safe='')}/{answer}", body)
    except CommandError as error:
        if error.code != "already_decided":
            raise


async def _ask(terminal: Terminal, keyboard: Keyboard) -> Answer:
    for _ in range(_ASKS_MAX):
        terminal.prompt("[a]pprove, [d]eny or [s]kip? ")
        line = await keyboard.line()
        if line is None:
            terminal.say()
            return "skip"
        if answer := _ANSWERS.get(line.strip().lower()):
            return answer
    return "skip"


def _card_lines(terminal: Terminal, approval: Mapping[str, Any]) -> list[str]:
    def paint(text: str, style: str) -> str:
        return terminal.style(text, style, stream=2)

    now_ms = time.time_ns() // 1_000_000
    return render_card(approval, width=terminal.width_of(2), now_ms=now_ms, paint=paint)
