"""Invariants of idempotency keys: one turn, one answer, one object."""

from __future__ import annotations

from typing import Any, Final

from kelpie.sim.view import AnswerSeen, View

CREATED_IDS: Final = {"/v1/agents/": "id", "/v1/plans": "plan_id"}
"""Where the answer to a creation names what was created."""
CALLS: Final = "/v1/actors/"
REFUSED: Final = 422


class OneTurnPerKey:
    """An idempotency key changes an actor once, for as long as its reply is kept."""

    name = "one-turn-per-key"

    def __init__(self) -> None:
        self._until_ms: dict[tuple[str, str, int, str, str], int] = {}

    def check(self, view: View) -> str | None:
        """Look for the last commit's key among earlier ones."""
        if view.last is None or view.last.commit.reply is None:
            return None
        commit, reply = view.last.commit, view.last.commit.reply
        assert reply.key, "a key has a name"
        assert reply.expires_ms > 0, "a reply is kept for a while"
        actor = str(commit.actor)
        scope = (view.last.host, actor, commit.incarnation, reply.method, reply.key)
        until_ms = self._until_ms.get(scope)
        self._until_ms[scope] = reply.expires_ms
        if until_ms is not None and commit.now_ms < until_ms:
            return f"{actor}: {reply.method} under key {reply.key!r} had a second turn"
        return None


class OneAnswerPerKey:
    """Whoever repeats a call under its key is told the same again."""

    name = "one-answer-per-key"

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, str], bytes] = {}
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Compare new answers with the first one of their key."""
        assert self._judged <= len(view.answers), "answers are only added"
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        for seen in fresh:
            if not seen.key or not seen.target.startswith(CALLS):
                continue
            scope = (seen.host, seen.target, seen.key)
            if seen.answer.status == REFUSED and scope in self._told:
                place = f"{seen.target} under key {seen.key!r}"
                return f"{place} was answered, and refused when asked again"
            if seen.answer.status != 200:
                continue
            first = self._told.setdefault(scope, seen.answer.body)
            if first != seen.answer.body:
                told = seen.answer.body[:80]
                assert told, "an answer says something"
                return f"{seen.target} under key {seen.key!r} said {first[:80]!r}, then {told!r}"
        return None


class RepliesFollowCommits:
    """Whoever was told that a keyed command was done was told after its turn was durable."""

    name = "reply-follows-its-commit"

    def __init__(self) -> None:
        self._commands: set[tuple[str, str]] = set()
        self._durable: set[tuple[str, str, str]] = set()
        self._unsure: list[AnswerSeen] = []
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Look for the commit of every answer; a method that ever committed is a command."""
        if view.last is not None and view.last.commit.reply is not None:
            actor, reply = view.last.commit.actor, view.last.commit.reply
            assert reply.key, "a key has a name"
            self._durable.add((view.last.host, f"{actor.type}/{actor.key}", reply.key))
            self._commands.add((actor.type, reply.method.rpartition(".")[2]))
            if view.last.receipt is None:
                self._excuse(view.last.host, f"{actor.type}/{actor.key}", reply.key)
        assert self._judged <= len(view.answers), "answers are only added"
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        # What is told is seen before the next commit, so `_durable` is as it was then.
        self._unsure.extend(seen for seen in fresh if seen.key and self._is_early(seen))
        for seen in self._unsure if view.is_over else ():
            kind, _, method = seen.target.removeprefix(CALLS).split("/")
            if (kind, method) in self._commands:
                return f"{seen.target} under key {seen.key!r} was answered and is not durable"
        return None

    def _excuse(self, host: str, actor: str, key: str) -> None:
        """A turn of unknown outcome was durable all the time: its kept reply could be read."""
        self._unsure = [
            seen
            for seen in self._unsure
            if (seen.host, _actor_of(seen), seen.key) != (host, actor, key)
        ]

    def _is_early(self, seen: AnswerSeen) -> bool:
        if seen.answer.status != 200 or not seen.target.startswith(CALLS) or not seen.key:
            return False
        return (seen.host, _actor_of(seen), seen.key) not in self._durable


def _actor_of(seen: AnswerSeen) -> str:
    return seen.target.removeprefix(CALLS).rpartition("/")[0]


class OneObjectPerKey:
    """Creations under one key, at once or later, give one object."""

    name = "one-object-per-key"

    def __init__(self) -> None:
        self._made: dict[tuple[str, str, str], str] = {}
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Compare the object that each answer names with the first one of its key."""
        assert self._judged <= len(view.answers), "answers are only added"
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        for seen in fresh:
            assert seen.asked_ns <= seen.answered_ns, "an answer follows its question"
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
