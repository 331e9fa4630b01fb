"""Invariants of idempotency keys: one turn, one answer, one object."""

from __future__ import annotations

from typing import Any, Final

from kelpie.sim.view import AnswerSeen, View

CREATED_IDS: Final = {"/v1/agents/": "id", "/v1/plans": "plan_id"}
"""Where the answer to a creation names what was created."""
CALLS: Final = "/v1/actors/"


class OneTurnPerKey:
    """An idempotency key changes an actor once, for as long as its reply is kept."""

    name: Final = "one-turn-per-key"

    def __init__(self) -> None:
        self._until_ms: dict[tuple[str, str, int, str, str], int] = {}

    def check(self, view: View) -> str | None:
        """Look for the last commit's key among earlier ones."""
        if view.last is None or view.last.commit.reply is None:
            return None
        commit, reply = view.last.commit, view.last.commit.reply
        actor = str(commit.actor)
        scope = (view.last.host, actor, commit.incarnation, reply.method, reply.key)
        until_ms = self._until_ms.get(scope)
        self._until_ms[scope] = reply.expires_ms
        if until_ms is not None and commit.now_ms < until_ms:
            return f"{actor}: {reply.method} under key {reply.key!r} had a second turn"
        return None


class OneAnswerPerKey:
    """Whoever repeats a call under its key is told the same again."""

    name: Final = "one-answer-per-key"

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], bytes] = {}
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Compare new answers with the first one of their key."""
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        for seen in fresh:
            if not (seen.key and seen.answer.status == 200 and seen.target.startswith(CALLS)):
                continue
            scope = (seen.host, seen.target, seen.key)
            first = self._told.setdefault(scope, seen.answer.body)
            if first != seen.answer.body:
                told = seen.answer.body[:80]
                return f"{seen.target} under key {seen.key!r} said {first[:80]!r}, then {told!r}"
        return None


class OneObjectPerKey:
    """Creations under one key, at once or later, give one object."""

    name: Final = "one-object-per-key"

    def __init__(self) -> None:
        self._made: dict[tuple[str, str, str], str] = {}
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Compare the object that each answer names with the first one of its key."""
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        for seen in fresh:
            made = created_id(seen)
            if not made or not seen.key:
                continue
            first = self._made.setdefault((seen.host, seen.target, seen.key), made)
            if first != made:
                return f"{seen.target} under key {seen.key!r} made {first} and {made}"
        return None


def created_id(seen: AnswerSeen) -> str:
    """Return what a creation made; empty for every other answer."""
    field = CREATED_IDS.get(seen.target, "")
    if seen.method != "POST" or not field or seen.answer.status != 200:
        return ""
    body: dict[str, Any] = seen.answer.json()
    return str(body[field])
