"""What a machine's store must hold, by the commits that were seen, and what its file does hold.

A `Book` is kept from commits alone. A `StoreSeen` is read from the database file alone, with SQL of
its own: an oracle that read through the product's code would believe its mistakes.

Invariants: a book only follows durable commits; reading a store changes nothing in it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from kelpie.core.ids import ActorId
from kelpie.storage.records import (
    AuditRecord,
    Commit,
    CommitReceipt,
    KvPut,
    ListPut,
    ReminderRow,
)

READ_TIMEOUT_S: Final = 0.0  # whoever writes is this very thread: waiting would be for ever


class ActorHeld(NamedTuple):
    """An actor's newest version; the state of a deleted one is empty."""

    incarnation: int
    version: int
    is_deleted: bool
    state: bytes


class Letter(NamedTuple):
    """A stored message without its number."""

    sender: str
    receiver: str
    body: bytes


class ReminderHeld(NamedTuple):
    """A durable timer of one incarnation."""

    due_ms: int
    body: bytes


class KeptReply(NamedTuple):
    """A reply that was kept under a key."""

    request: str
    reply: bytes
    expires_ms: int


Owned = tuple[str, int, str]
"""Actor, incarnation, name."""


@dataclass(slots=True, kw_only=True)
class Rows:
    """The tables that a commit writes, by their keys; rows of deleted actors are left out."""

    actors: dict[str, ActorHeld] = field(default_factory=dict[str, ActorHeld])
    kv: dict[Owned, bytes] = field(default_factory=dict[Owned, bytes])
    outbox: dict[int, Letter] = field(default_factory=dict[int, Letter])
    reminders: dict[Owned, ReminderHeld] = field(default_factory=dict[Owned, ReminderHeld])
    effects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    effect_owners: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    lists: dict[tuple[str, str], tuple[str, int]] = field(
        default_factory=dict[tuple[str, str], tuple[str, int]]
    )
    replies: dict[tuple[str, int, str, str], KeptReply] = field(
        default_factory=dict[tuple[str, int, str, str], KeptReply]
    )

    def is_alive(self, actor: str, incarnation: int) -> bool:
        """Whether this incarnation is the actor's newest and was not deleted."""
        held = self.actors.get(actor)
        return held is not None and not held.is_deleted and held.incarnation == incarnation


@dataclass(slots=True, kw_only=True)
class StoreSeen:
    """What one look at a machine's database file found.

    Attributes:
        session: Who owned the store then.
        dead: The numbers of messages that were given up.
        audit: Every link of every chain, by shard and in order.
        epochs: The newest epoch of every shard.
        is_held: Whether the store waits for a release after a restore.
        is_rest: Whether all work had ended.
        now_ms: The machine's wall clock.
    """

    host: str
    session: str
    rows: Rows
    dead: frozenset[int]
    audit: dict[int, list[AuditRecord]]
    epochs: dict[int, int]
    is_held: bool
    is_rest: bool
    now_ms: int


class Book:
    """What commits say that one machine's store holds.

    Attributes:
        rows: The tables.
        unnumbered: Messages that may be there under a number that nobody heard: of commits whose
            writer died before, and of submitted calls.
        audit: What was to be linked, by shard and in order.
        buried: Reminders that may have left without a turn, as dead letters.
        now_ms: The newest time in a commit, by which the store forgets replies.
    """

    def __init__(self) -> None:
        self.rows = Rows()
        self.unnumbered: list[Letter] = []
        self.audit: dict[int, list[tuple[str, str, bytes]]] = {}
        self.buried: set[Owned] = set()
        self.now_ms = 0
        self.commits = 0
        self._left: set[int] = set()

    def note(self, commit: Commit, receipt: CommitReceipt | None) -> None:
        """Take a durable commit into account."""
        assert commit.incarnation >= 1, "incarnations count from one"
        actor, rows = str(commit.actor), self.rows
        before = rows.actors.get(actor)
        is_same = before is not None and before.incarnation == commit.incarnation
        kept = before.state if before is not None and is_same else b""
        state = kept if commit.state is None else commit.state
        version = commit.expected_version + 1
        state = b"" if commit.tombstone else state
        rows.actors[actor] = ActorHeld(commit.incarnation, version, commit.tombstone, state)
        self.now_ms = max(self.now_ms, commit.now_ms)
        self.commits += 1
        self._note_causes(commit, actor)
        self._note_rows(commit, actor)
        self._note_sends(commit, receipt)
        links = [(each.kind, each.principal, each.body) for each in commit.audit]
        self.audit.setdefault(commit.shard, []).extend(links)
        if commit.tombstone:
            self._forget(actor, commit.incarnation)
        assert rows.actors[actor].version == version, "a book follows every commit"

    def begin_with(self, seen: StoreSeen) -> None:
        """Begin with what was found: a store that was restored from a copy."""
        assert not self.commits, "a book begins once"
        self.rows = seen.rows
        for shard, records in seen.audit.items():
            self.audit[shard] = [(each.kind, each.principal, each.body) for each in records]
        assert self.rows is seen.rows

    def adopt_numbers(self, found: dict[int, Letter]) -> None:
        """Learn the numbers of messages whose writer died before it heard them."""
        waiting = len(self.unnumbered)
        for number in sorted(found):
            letter = found[number]
            if number not in self.rows.outbox and letter in self.unnumbered:
                self.unnumbered.remove(letter)
                self.rows.outbox[number] = letter
                self._left.discard(number)  # its process died before it could end the call
        assert all(number > 0 for number in found), "messages are counted from one"
        assert len(self.unnumbered) <= waiting, "a message gets one number"

    def bury(self, reminder: ReminderRow) -> None:
        """Take into account that a reminder may leave from now on without a turn."""
        assert reminder.name, "a reminder has a name"
        place = (str(reminder.actor), reminder.name)
        self.buried |= {key for key in self.rows.reminders if (key[0], key[2]) == place}
        assert self.buried <= self.rows.reminders.keys() | self.buried

    def adopt_burials(self, found: dict[Owned, ReminderHeld]) -> None:
        """Learn which reminders left as dead letters."""
        for place in sorted(self.buried - found.keys()):
            self.buried.discard(place)
            self.rows.reminders.pop(place, None)
        assert self.buried <= found.keys(), "what is not there has left"
        assert not self.buried - self.rows.reminders.keys() - found.keys()

    def expect(self, letter: Letter) -> None:
        """Take into account that a message may be stored from now on: a submitted call."""
        assert letter.body, "a call is a message with a body"
        self.unnumbered.append(letter)
        assert letter in self.unnumbered

    def take_back(self, letter: Letter) -> None:
        """Take back what was expected: the call was refused."""
        assert letter in self.unnumbered, "only what was expected is taken back"
        self.unnumbered.remove(letter)
        assert letter.body, "a call is a message with a body"

    def number(self, letter: Letter, number: int) -> None:
        """Learn the number of an expected message: its caller was told that it is kept.

        It waits from now on like any other, unless it has left already; it may also be a call that
        came before under the same key.
        """
        assert number > 0, "messages are counted from one"
        if letter in self.unnumbered:
            self.unnumbered.remove(letter)
        if number not in self._left:
            self.rows.outbox[number] = letter
        assert (number in self.rows.outbox) == (number not in self._left)

    def release(self, number: int) -> None:
        """Take into account that a message may leave from now on without a turn: an ended call."""
        assert number > 0, "messages are counted from one"
        self._left.add(number)
        letter = self.rows.outbox.pop(number, None)
        if letter is not None:
            self.unnumbered.append(letter)
        assert number not in self.rows.outbox

    def _note_causes(self, commit: Commit, actor: str) -> None:
        if commit.consumes is not None:
            self._left.add(commit.consumes)
            known = self.rows.outbox.pop(commit.consumes, None)
            unheard = [each for each in self.unnumbered if each.receiver == actor]
            if known is None and unheard:
                self.unnumbered.remove(unheard[0])
        if commit.fired is not None:
            self.rows.reminders.pop((actor, commit.incarnation, commit.fired[0]), None)

    def _note_rows(self, commit: Commit, actor: str) -> None:
        rows, incarnation = self.rows, commit.incarnation
        for write in commit.kv:
            if isinstance(write, KvPut):
                rows.kv[actor, incarnation, write.key] = write.value
            else:
                rows.kv.pop((actor, incarnation, write.key), None)
        for reminder in commit.reminders:
            name = (actor, incarnation, reminder.name)
            if isinstance(reminder, ReminderRow):
                rows.reminders[name] = ReminderHeld(reminder.due_ms, reminder.body)
            else:
                rows.reminders.pop(name, None)
        for effect in commit.effects:
            rows.effects[effect.effect_id] = effect.body
            rows.effect_owners[effect.effect_id] = (actor, incarnation)
        for item in commit.lists:
            place = (item.collection, item.item_id)
            if isinstance(item, ListPut):
                rows.lists[place] = (actor, incarnation)
            elif rows.lists.get(place) == (actor, incarnation):
                del rows.lists[place]
        if commit.reply is not None:
            reply = commit.reply
            kept = KeptReply(reply.request, reply.reply, reply.expires_ms)
            rows.replies[actor, incarnation, reply.method, reply.key] = kept

    def _note_sends(self, commit: Commit, receipt: CommitReceipt | None) -> None:
        letters = [Letter(str(row.sender), str(row.receiver), row.body) for row in commit.sends]
        if receipt is None:
            self.unnumbered.extend(letters)
        else:
            self.rows.outbox.update(zip(receipt.message_ids, letters, strict=True))

    def _forget(self, actor: str, incarnation: int) -> None:
        """Drop what a deleted incarnation owned; what it sent stays."""
        gone, rows = (actor, incarnation), self.rows
        for owned in (rows.kv, rows.reminders, rows.replies):
            for key in [key for key in owned if key[:2] == gone]:
                del owned[key]  # type: ignore[arg-type]
        for effect_id in [name for name, owner in rows.effect_owners.items() if owner == gone]:
            del rows.effects[effect_id], rows.effect_owners[effect_id]
        for place in [place for place, owner in rows.lists.items() if owner == gone]:
            del rows.lists[place]


# --- reading the file ---------------------------------------------------------------------------


def read_store(path: Path, *, host: str, session: str, now_ms: int, is_rest: bool) -> StoreSeen:
    """Return what the database file at ``path`` holds; its writer must be between transactions."""
    address = f"file:{path}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=READ_TIMEOUT_S)) as connection:
        query = connection.execute
        query("BEGIN")
        rows = _read_rows(connection)
        dead = frozenset(number for (number,) in query("SELECT message_id FROM dead_letters"))
        epochs = dict(query("SELECT shard, epoch FROM shards").fetchall())
        held = query("SELECT value FROM meta WHERE name = 'held'").fetchone()
        audit = _read_audit(connection)
    return StoreSeen(
        host=host,
        session=session,
        rows=rows,
        dead=dead,
        audit=audit,
        epochs=epochs,
        is_held=held is not None,
        is_rest=is_rest,
        now_ms=now_ms,
    )


def _read_rows(connection: sqlite3.Connection) -> Rows:
    query, rows = connection.execute, Rows()
    chunks: dict[str, bytes] = {}
    for actor, data in query("SELECT actor, data FROM state_chunks ORDER BY actor, chunk"):
        chunks[actor] = chunks.get(actor, b"") + data
    columns = "actor, incarnation, version, tombstoned, state"
    for actor, incarnation, version, gone, inline in query(f"SELECT {columns} FROM actors"):  # noqa: S608
        held = ActorHeld(incarnation, version, bool(gone), inline)
        rows.actors[actor] = held._replace(state=chunks[actor]) if actor in chunks else held
    for actor, incarnation, key, value in query("SELECT actor, incarnation, key, value FROM kv"):
        rows.kv[actor, incarnation, key] = value
    for number, *letter in query("SELECT message_id, sender, receiver, body FROM outbox"):
        rows.outbox[number] = Letter(*letter)
    columns = "actor, incarnation, name, due_ms, body"
    for actor, incarnation, name, *held in query(f"SELECT {columns} FROM reminders"):  # noqa: S608
        rows.reminders[actor, incarnation, name] = ReminderHeld(*held)
    _read_owned(query("SELECT effect_id, actor, incarnation, body FROM effects"), rows)
    columns = "collection, item_id, owner, incarnation"
    for collection, item, *owner in query(
        f"SELECT {columns} FROM lists WHERE deleted_ms IS NULL"  # noqa: S608
    ):
        rows.lists[collection, item] = (owner[0], owner[1])
    columns = "actor, incarnation, method, key, request, reply, expires_ms"
    for actor, incarnation, method, key, *kept in query(f"SELECT {columns} FROM replies"):  # noqa: S608
        rows.replies[actor, incarnation, method, key] = KeptReply(*kept)
    return _without_deleted(rows)


def _read_owned(effects: Iterable[Any], rows: Rows) -> None:
    for effect_id, actor, incarnation, body in effects:
        rows.effects[effect_id] = body
        rows.effect_owners[effect_id] = (actor, incarnation)


def _without_deleted(rows: Rows) -> Rows:
    """Leave out what belongs to deleted incarnations: its removal may take a while."""
    for owned in (rows.kv, rows.reminders, rows.replies):
        for key in [key for key in owned if not rows.is_alive(key[0], key[1])]:
            del owned[key]  # type: ignore[arg-type]
    for effect_id, owner in list(rows.effect_owners.items()):
        if not rows.is_alive(*owner):
            del rows.effects[effect_id], rows.effect_owners[effect_id]
    for place in [place for place, owner in rows.lists.items() if not rows.is_alive(*owner)]:
        del rows.lists[place]
    return rows


def _read_audit(connection: sqlite3.Connection) -> dict[int, list[AuditRecord]]:
    chains: dict[int, list[AuditRecord]] = {}
    columns = "shard, sequence, at_ms, actor, kind, principal, body, previous, hash"
    query = f"SELECT {columns} FROM audit ORDER BY shard, sequence"  # noqa: S608
    for shard, sequence, at_ms, actor, *rest in connection.execute(query):
        record = AuditRecord(shard, sequence, at_ms, ActorId.parse(actor), *rest)
        chains.setdefault(shard, []).append(record)
    return chains
