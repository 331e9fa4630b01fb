"""Diff Cards, printed as the product prints them, and looked at for what they must say."""

from __future__ import annotations

import time
from typing import Any

from demo.claims import LINES_MAX, ClaimError, Narrator
from demo.stage import Stage


def show_card(
    stage: Stage, narrator: Narrator, effect_id: str, *, lines_max: int = LINES_MAX
) -> None:
    """Print the Diff Card of a question as `kelpie approvals show` prints it.

    Raises:
        ClaimError: It does not print one.
    """
    narrator.line(f"  $ kelpie approvals show {effect_id}")
    shown = stage.kelpie_on_terminal("approvals", "show", effect_id, colored=narrator.colored)
    card = [line for line in shown.stdout.splitlines() if line.startswith("|")]
    if shown.status != 0 or not card:
        raise ClaimError("kelpie approvals show prints the card", "a card", shown)
    narrator.quote("\n".join(card), lines_max=lines_max)


def check_card(narrator: Narrator, effect: dict[str, Any], *, diff: bool) -> None:
    """Claim that a card says all that a person must know, and a diff or a command.

    Raises:
        ClaimError: Something is missing.
    """
    card = effect["card"]
    parts = {
        "why": bool(card["reasons"]),
        "where": bool(card["where"]),
        "undo": bool(card["undo"]),
        "expires": card["expires_ms"] > time.time() * 1000,
    }
    if diff:
        parts["unified diff"] = all("@@" in each["diff"] for each in card["files"])
    else:
        parts["command"] = bool(card["argv"])
        parts["no network"] = "no network" in card["where"]
    narrator.equal(f"it says {', '.join(parts)}", expected=dict.fromkeys(parts, True), seen=parts)
