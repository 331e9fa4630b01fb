"""Invariants of what waits in a store: messages, reminders, and what a restored store may drive."""

from __future__ import annotations

from typing import Final

from kelpie.sim.view import CommitSeen, View

OVERDUE_MS_MAX: Final = 60_000
"""A due reminder of a machine at rest has fired by then, however often its turn was refused."""


class MessagesAreConsumedOnce:
    """A turn consumes a message that was sent to its actor and that no turn consumed before."""

    name = "message-consumed-once"

    def check(self, view: View) -> str | None:
        """Look for the consumed message among those that wait."""
        if view.last is None or view.last.commit.consumes is None:
            return None
        commit, number = view.last.commit, view.last.commit.consumes
        book = view.book_of(view.last.host)
        letter = book.rows.outbox.get(number)
        if letter is None:
            if any(each.receiver == str(commit.actor) for each in book.unnumbered):
                return None  # it may be one whose number nobody heard
            return f"{commit.actor} consumed message {number}, which does not wait for anybody"
        if letter.receiver != str(commit.actor):
            return f"{commit.actor} consumed message {number} to {letter.receiver}"
        return None


class MessagesKeepTheirOrder:
    """Messages from one actor to another have their turns in the order in which they were sent."""

    name = "fifo-per-sender"

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str, str], int] = {}

    def check(self, view: View) -> str | None:
        """Compare the consumed message with the last one of its lane."""
        if view.last is None or view.last.commit.consumes is None:
            return None
        host, number = view.last.host, view.last.commit.consumes
        letter = view.book_of(host).rows.outbox.get(number)
        if letter is None:
            return None
        assert number > 0, "messages are counted from one"
        lane = (host, letter.sender, letter.receiver)
        before = self._newest.get(lane, 0)
        self._newest[lane] = max(before, number)
        assert self._newest[lane] >= before, "a lane only goes on"
        if number < before:
            return f"{letter.receiver} had message {number} after {before} of {letter.sender}"
        return None


class NoMessageIsDropped:
    """A stored message waits, is consumed, or is a dead letter; at rest none waits."""

    name = "no-message-dropped"

    def check(self, view: View) -> str | None:
        """Look for every waiting message in the file."""
        seen = view.look
        if seen is None:
            return None
        book = view.book_of(seen.host)
        for number, letter in book.rows.outbox.items():
            if number in seen.dead:
                continue
            if number not in seen.rows.outbox:
                return f"message {number} of {letter.sender} to {letter.receiver} is gone"
            if seen.rows.outbox[number] != letter:
                return f"message {number} to {letter.receiver} is not as it was sent"
            if seen.is_rest:
                return f"message {number} of {letter.sender} to {letter.receiver} still waits"
        extra = seen.rows.outbox.keys() - book.rows.outbox.keys()
        return f"message {min(extra)} was never sent" if extra else None


class RemindersFireAsSet:
    """A reminder fires as it was last set, and once; at rest none is overdue."""

    name = "reminder-fires-as-set"

    def check(self, view: View) -> str | None:
        """Judge the reminder that the last turn fired, and those that wait at rest."""
        if view.last is not None and view.last.commit.fired is not None:
            return self._judge(view.last, view)
        seen = view.look
        if seen is None or not seen.is_rest or seen.is_held:
            return None
        for (actor, _, name), held in seen.rows.reminders.items():
            if held.due_ms + OVERDUE_MS_MAX < seen.now_ms:
                late_ms = seen.now_ms - held.due_ms
                return f"{seen.host}: reminder {name!r} of {actor} is {late_ms} ms overdue"
        return None

    def _judge(self, last: CommitSeen, view: View) -> str | None:
        commit = last.commit
        assert commit.fired is not None, "a reminder fired"
        name, due_ms = commit.fired
        place = (str(commit.actor), commit.incarnation, name)
        held = view.book_of(last.host).rows.reminders.get(place)
        if held is None:
            return f"{commit.actor}: reminder {name!r} fired and was not set"
        if held.due_ms != due_ms:
            return f"{commit.actor}: reminder {name!r} fired for {due_ms}, not {held.due_ms}"
        return None


class HeldStoreRests:
    """A restored store starts no effect, delivers nothing and fires nothing before its release."""

    name = "restored-drives-nothing"

    def __init__(self) -> None:
        self._held: set[str] = set()

    def check(self, view: View) -> str | None:
        """Judge commits of machines whose store was held when it was opened."""
        assert view.look is None or view.last is None, "one thing is judged at a time"
        if view.look is not None and view.look.is_held:
            assert view.look.host, "a file is some machine's"
            self._held.add(view.look.host)
        if view.last is None or view.last.host not in self._held - view.released:
            return None
        commit = view.last.commit
        if commit.consumes is not None:
            return f"{commit.actor} consumed message {commit.consumes} in a held store"
        if commit.fired is not None:
            return f"{commit.actor}: reminder {commit.fired[0]!r} fired in a held store"
        for row in commit.effects:
            if row.state == "started":
                return f"{row.kind} {row.effect_id} started in a held store"
        return None
