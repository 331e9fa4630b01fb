"""Invariants of turns: one at a time for an actor, bounded mailboxes, nothing dropped in silence.

Turns inside a process leave no trace in commits, so a scenario's own actors say when they begin and
end, and its own clients what they were told.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from kelpie.core.limits import MAILBOX_DEPTH_MAX
from kelpie.sim.view import View


class TurnSeen(NamedTuple):
    """A command's handler that began or ended, in which life of which machine."""

    host: str
    life: int
    actor: str
    has_begun: bool


class CrowdSeen(NamedTuple):
    """What became of calls that were made at once of an actor that was busy."""

    asked: int
    done: int
    refused: int


class OneTurnAtATime:
    """No two commands of an actor run at once."""

    name = "one-turn-at-a-time"

    def __init__(self) -> None:
        self._running: Counter[tuple[str, int, str]] = Counter()
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Count what began and has not ended."""
        turns = view.said.get("turns", [])
        assert self._judged <= len(turns), "turns are only added"
        fresh, self._judged = turns[self._judged :], len(turns)
        for seen in fresh:
            assert isinstance(seen, TurnSeen), "handlers say where they run"
            place = seen[:3]
            self._running[place] += 1 if seen.has_begun else -1
            if self._running[place] > 1:
                return f"{seen.host}: two turns of {seen.actor} run at once"
        return None


class MailboxesAreBounded:
    """A busy actor lets so many calls wait and no more, and every call is answered."""

    name = "mailbox-bounded-and-nothing-dropped"

    def check(self, view: View) -> str | None:
        """Judge what became of each crowd."""
        for seen in view.said.get("crowds", ()):
            assert isinstance(seen, CrowdSeen), "a crowd says what became of it"
            if seen.done > MAILBOX_DEPTH_MAX:
                return f"{seen.done} calls waited for one actor; {MAILBOX_DEPTH_MAX} may"
            if seen.done + seen.refused != seen.asked:
                lost = seen.asked - seen.done - seen.refused
                return f"{lost} of {seen.asked} calls were dropped without an answer"
        return None
