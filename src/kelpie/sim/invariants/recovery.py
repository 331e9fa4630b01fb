"""Invariants of what a store holds: all that was acknowledged, nothing else, whole turns only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kelpie.sim.book import ActorHeld, Book, Rows
from kelpie.sim.view import ReadSeen, View


class AcknowledgedIsPresent:
    """Whatever became durable is in the file at every later look."""

    name = "acknowledged-is-present"

    def check(self, view: View) -> str | None:
        """Look for every actor and kept reply of the book in the file."""
        seen = view.look
        if seen is None:
            return None
        book = view.book_of(seen.host)
        for actor, held in book.rows.actors.items():
            found = seen.rows.actors.get(actor)
            if found is None:
                return f"{seen.host}: {actor} is gone; version {held.version} was durable"
            if found[:2] < held[:2]:
                return f"{seen.host}: {actor} is {_place(found)}; {_place(held)} was durable"
        for key, kept in book.rows.replies.items():
            if kept.expires_ms > book.now_ms and key not in seen.rows.replies:
                return f"{seen.host}: the reply under key {key[3]!r} of {key[0]} is gone"
        return None


class NothingIsInvented:
    """The file holds no version, row or message that no commit wrote."""

    name = "no-phantom"

    def check(self, view: View) -> str | None:
        """Look for every row of the file in the book."""
        seen = view.look
        if seen is None:
            return None
        book = view.book_of(seen.host)
        for actor, found in seen.rows.actors.items():
            held = book.rows.actors.get(actor)
            if held is None or found[:2] > held[:2]:
                return f"{seen.host}: {actor} is {_place(found)}, which nobody committed"
        for title, rows in _tables(seen.rows).items():
            extra = rows.keys() - _tables(book.rows)[title].keys()
            if extra:
                return f"{seen.host}: {title} {min(map(str, extra))} was never committed"
        return None


class RecoveredIsWhole:
    """Every actor in the file is one whole turn: its state and all its rows are of one version."""

    name = "recovered-is-whole-turns"

    def check(self, view: View) -> str | None:
        """Compare every row of the file with the book."""
        seen = view.look
        if seen is None:
            return None
        book = view.book_of(seen.host)
        for actor, found in seen.rows.actors.items():
            held = book.rows.actors.get(actor)
            if held is not None and found != held:
                return f"{seen.host}: {actor} is {_place(found)} with another state than committed"
        for title, rows in _tables(seen.rows).items():
            problem = _differ(title, _tables(book.rows)[title], rows, book)
            if problem is not None:
                return f"{seen.host}: {problem}"
        return None


def _differ(
    title: str, expected: Mapping[Any, Any], found: Mapping[Any, Any], book: Book
) -> str | None:
    for key, value in expected.items():
        if key in found:
            if found[key] != value:
                return f"{title} {key} is not as it was committed"
        elif title != "reply" or value.expires_ms > book.now_ms:
            return f"{title} {key} is missing, its turn is there"
    return None


def _place(held: ActorHeld) -> str:
    end = " (deleted)" if held.is_deleted else ""
    return f"at version {held.version} of incarnation {held.incarnation}{end}"


def _tables(rows: Rows) -> dict[str, Mapping[Any, Any]]:
    return {
        "ordered-map key": rows.kv,
        "reminder": rows.reminders,
        "effect": rows.effects,
        "list item": rows.lists,
        "reply": rows.replies,
    }


class ReadsAreCommitted:
    """What a load answers is what was committed, and no older than what was durable before it."""

    name = "what-is-read-was-committed"

    def __init__(self) -> None:
        self._states: dict[tuple[str, str, int, int], bytes] = {}
        self._newest: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
        self._early: list[ReadSeen] = []

    def check(self, view: View) -> str | None:
        """Remember every version; judge every read, at the latest when the run is over."""
        assert view.read is None or view.last is None, "one thing is judged at a time"
        assert len(self._newest) <= len(self._states), "every actor has a version"
        if view.last is not None:
            self._learn(view)
        if view.look is not None:
            for actor, held in view.look.rows.actors.items():
                if not held.is_deleted:
                    place = (view.look.host, actor, held.incarnation, held.version)
                    self._states.setdefault(place, held.state)
        if view.read is not None:
            return self._judge(view.read, is_last=False)
        if view.is_over:
            for read in self._early:
                problem = self._judge(read, is_last=True)
                if problem is not None:
                    return problem
        return None

    def _learn(self, view: View) -> None:
        assert view.last is not None, "there is a commit to learn"
        host, commit = view.last.host, view.last.commit
        actor, version = str(commit.actor), commit.expected_version + 1
        state = commit.state
        if state is None:
            before = (host, actor, commit.incarnation, version - 1)
            state = self._states.get(before, b"")
        self._states[host, actor, commit.incarnation, version] = state
        mark = (view.commits, commit.incarnation, 0 if commit.tombstone else version)
        self._newest.setdefault((host, actor), []).append(mark)

    def _judge(self, read: ReadSeen, *, is_last: bool) -> str | None:
        actor, stored = str(read.actor), read.stored
        before = [
            (incarnation, version)
            for number, incarnation, version in self._newest.get((read.host, actor), [])
            if number <= read.commits
        ]
        found = (stored.incarnation, stored.version) if stored is not None else (0, 0)
        if before and found < before[-1]:
            return f"{read.host}: {actor} was read at {found}, {before[-1]} was durable before"
        if stored is None or stored.tombstoned:
            return None
        state = self._states.get((read.host, actor, found[0], found[1]))
        if state is None:
            if is_last:
                return f"{read.host}: {actor} was read at {found}, which nobody committed"
            self._early.append(read)
            return None
        if state != stored.state:
            return f"{read.host}: {actor} was read at {found} with another state than committed"
        return None
