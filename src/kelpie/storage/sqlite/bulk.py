"""Many commits as one statement per table.

A batch under load holds hundreds of commits that each would cost a read and several writes of
their own. Those of the ordinary shape are written together instead: every check is part of the
statement that writes (``WHERE version = ?``), the statements run over all rows at once, and the
count of changed rows says whether every check held. If one did not, everything is undone and the
commits run one by one through `apply_commit`, which finds the culprit and names the refusal. So
`apply_commit` alone decides what a commit means; this module is a faster way to the same rows.

Invariant: after `apply_together` returns outcomes, the file holds what `apply_commit` over the same
commits, in the same order, would have left; after it returns None, the file is as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final
from zlib import crc32

from kelpie.core.limits import STATE_CHUNK_BYTES
from kelpie.storage.records import Commit, CommitReceipt, KvPut, ReminderRow, ReplyRecord
from kelpie.storage.sqlite.calls import COMPLETE_CALL, end_values
from kelpie.storage.sqlite.transaction import Counter, Member, Transaction

BULK_COMMITS_MIN: Final = 3
"""Fewer commits than this are not worth a plan."""
EPOCHS_READ_MIN: Final = 16
"""From so many members on, one statement that reads every shard's epoch is the shorter way."""

Row = tuple[Any, ...]

_CREATE: Final = (
    "INSERT INTO actors VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 0, ?, 0, ?)"
    " ON CONFLICT (actor) DO NOTHING"
)
_UPDATE: Final = (
    "UPDATE actors SET epoch = ?, version = ?, event_sequence = event_sequence + ?, updated_ms = ?,"
    " schema_version = ?, checksum = ?, state = ?"
    " WHERE actor = ? AND shard = ? AND incarnation = ? AND version = ?"
    " AND chunks = 0 AND tombstoned = 0"
)
_TOUCH: Final = (
    "UPDATE actors SET epoch = ?, version = ?, event_sequence = event_sequence + ?, updated_ms = ?"
    " WHERE actor = ? AND shard = ? AND incarnation = ? AND version = ? AND tombstoned = 0"
)
_KEEP_REPLY: Final = (
    "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (actor, incarnation, method, key) DO UPDATE SET tenant = excluded.tenant,"
    " shard = excluded.shard, epoch = excluded.epoch, request = excluded.request,"
    " expires_ms = excluded.expires_ms, checksum = excluded.checksum, reply = excluded.reply"
    " WHERE expires_ms <= ?"
)
_APPEND: Final = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SEND: Final = "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, 0, ?, '', ?, ?)"
_CONSUME: Final = "DELETE FROM outbox WHERE message_id = ? AND receiver = ?"
_FIRE: Final = (
    "DELETE FROM reminders WHERE actor = ? AND incarnation = ? AND name = ? AND due_ms = ?"
)
_REMIND: Final = "INSERT OR REPLACE INTO reminders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FORGET: Final = "DELETE FROM reminders WHERE actor = ? AND incarnation = ? AND name = ?"
_PUT: Final = "INSERT OR REPLACE INTO kv VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_REMOVE: Final = "DELETE FROM kv WHERE actor = ? AND incarnation = ? AND key = ?"
# A row each, or a check failed. The others may change nothing, or replace a row.
_CHECKED: Final = frozenset({_CREATE, _UPDATE, _TOUCH, _KEEP_REPLY, _CONSUME, _FIRE})


class _Statement:
    """One statement and the rows it runs over, in order."""

    __slots__ = ("query", "rows")

    def __init__(self, query: str) -> None:
        self.query = query
        self.rows: list[Row] = []


class _Table:
    """What happens to one table: the order of its statements is that of the commits."""

    __slots__ = ("_last", "statements")

    def __init__(self) -> None:
        self.statements: list[_Statement] = []
        self._last = _Statement("")

    def add(self, query: str, row: Row) -> None:
        assert query, "a row belongs to a statement"
        if self._last.query is not query:
            self._last = _Statement(query)
            self.statements.append(self._last)
        self._last.rows.append(row)


class _Plan:
    """The statements of a run of commits, and the receipts they earn if every check holds."""

    __slots__ = ("_sequences", "_transaction", "actors", "events", "now_ms", "others", "replies")

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._sequences: dict[str, int] = {}
        self.actors = _Table()
        self.replies = _Table()
        self.events = _Table()
        self.others = (_Table(), _Table(), _Table(), _Table())
        self.now_ms = 0

    def add(self, commit: Commit) -> CommitReceipt:
        """Plan one commit."""
        # Runs for every turn: flat tuples, because a row put together from parts costs as much
        # again as everything else here.
        actor = str(commit.actor)
        version = commit.expected_version
        now_ms = commit.now_ms
        assert not commit.tombstone, "a deletion is applied alone"
        self.now_ms = max(self.now_ms, now_ms)
        events = commit.events
        first_sequence = self._add_events(commit, actor) if events else 0
        state = commit.state
        if version == 0:
            self._add_new_actor(commit, actor)
        elif state is None:
            place = (actor, commit.shard, commit.incarnation, version)
            self.actors.add(_TOUCH, (commit.epoch, version + 1, len(events), now_ms, *place))
        else:
            row = (
                commit.epoch,
                version + 1,
                len(events),
                now_ms,
                commit.schema_version,
                crc32(state),
                state,
                actor,
                commit.shard,
                commit.incarnation,
                version,
            )
            self.actors.add(_UPDATE, row)
        if commit.reply is not None:
            self._add_reply(commit, actor, commit.reply)
        message_ids = self._add_rows(commit, actor) if _has_rows(commit) else ()
        return CommitReceipt(version + 1, message_ids, first_sequence)

    def _add_rows(self, commit: Commit, actor: str) -> tuple[int, ...]:
        if commit.kv:
            self._add_kv(commit, actor)
        if commit.consumes is not None:
            self.others[0].add(_CONSUME, (commit.consumes, actor))
            if commit.call is not None:
                self.others[3].add(COMPLETE_CALL, end_values(commit.consumes, commit.call))
        if commit.fired is not None or commit.reminders:
            self._add_reminders(commit, actor)
        return self._add_sends(commit) if commit.sends else ()

    def _add_new_actor(self, commit: Commit, actor: str) -> None:
        data = commit.state or b""
        row = (
            *(commit.actor.tenant, actor, commit.shard, commit.epoch, commit.incarnation, 1),
            *(commit.schema_version, len(commit.events), commit.now_ms, crc32(data), data),
        )
        self.actors.add(_CREATE, row)

    def _add_reply(self, commit: Commit, actor: str, reply: ReplyRecord) -> None:
        assert commit.reply is reply, "a commit keeps its own reply"
        row = (
            commit.actor.tenant,
            actor,
            commit.incarnation,
            reply.method,
            reply.key,
            commit.shard,
            commit.epoch,
            reply.request,
            reply.expires_ms,
            crc32(reply.reply),
            reply.reply,
            commit.now_ms,
        )
        self.replies.add(_KEEP_REPLY, row)

    def _add_kv(self, commit: Commit, actor: str) -> None:
        owner = (commit.actor.tenant, actor, commit.incarnation)
        fence = (commit.shard, commit.epoch)
        for write in commit.kv:
            if isinstance(write, KvPut):
                row = (*owner, write.key, *fence, crc32(write.value), write.value)
                self.others[1].add(_PUT, row)
            else:
                self.others[1].add(_REMOVE, (actor, commit.incarnation, write.key))

    def _add_reminders(self, commit: Commit, actor: str) -> None:
        table = self.others[2]
        owner = (commit.actor.tenant, actor, commit.incarnation)
        fence = (commit.shard, commit.epoch)
        if commit.fired is not None:
            table.add(_FIRE, (actor, commit.incarnation, *commit.fired))
        for reminder in commit.reminders:
            if isinstance(reminder, ReminderRow):
                body = reminder.body
                row = (*owner, reminder.name, *fence, reminder.due_ms, crc32(body), body)
                table.add(_REMIND, row)
            else:
                table.add(_FORGET, (actor, commit.incarnation, reminder.name))

    def _add_sends(self, commit: Commit) -> tuple[int, ...]:
        first = self._transaction.take("message", len(commit.sends))
        for message_id, send in enumerate(commit.sends, start=first):
            row = (message_id, send.receiver.tenant, commit.shard, commit.epoch)
            names = (str(send.sender), str(send.receiver), send.not_before_ms)
            self.others[0].add(_SEND, (*row, *names, crc32(send.body), send.body))
        return tuple(range(first, first + len(commit.sends)))

    def _add_events(self, commit: Commit, actor: str) -> int:
        """Number the commit's events; the actor's row is read once for all its commits."""
        newest = self._sequences.get(actor)
        if newest is None:
            query = "SELECT event_sequence FROM actors WHERE actor = ?"
            row = self._transaction.execute(query, (actor,)).fetchone()
            newest = row[0] if row else 0
        position = self._transaction.take("event", len(commit.events))
        self._sequences[actor] = newest + len(commit.events)
        for offset, event in enumerate(commit.events):
            place = (position + offset, commit.actor.tenant, actor, newest + 1 + offset)
            fence = (commit.shard, commit.epoch, commit.now_ms)
            self.events.add(_APPEND, (*place, *fence, event.kind, crc32(event.body), event.body))
        return newest + 1

    def run(self, connection: sqlite3.Connection) -> bool:
        """Run every statement; return whether every check held."""
        for table in (self.actors, self.replies, *self.others, self.events):
            for statement in table.statements:
                changed = connection.executemany(statement.query, statement.rows).rowcount
                if statement.query in _CHECKED and changed != len(statement.rows):
                    return False
        return True

    def count_replies(self) -> int:
        """Return how many replies it keeps."""
        return _count_rows(self.replies)

    def count_calls(self) -> int:
        """Return how many submitted calls it ends."""
        return _count_rows(self.others[3])


def _count_rows(table: _Table) -> int:
    return sum(len(statement.rows) for statement in table.statements)


def take_ordinary(
    transaction: Transaction, members: Sequence[Commit | Member], start: int
) -> list[Commit]:
    """Return the commits from ``start`` on, up to the first member that must run for itself.

    Returns nothing when too few members are left to be worth it. A commit whose epoch is another is
    no ordinary one.
    """
    commits: list[Commit] = []
    if len(members) - start < BULK_COMMITS_MIN:
        return commits
    if len(members) - start >= EPOCHS_READ_MIN:
        transaction.read_epochs()
    for index in range(start, len(members)):
        member = members[index]
        if not isinstance(member, Commit) or transaction.epoch_of(member.shard) != member.epoch:
            break
        if not _is_ordinary(member):
            break
        commits.append(member)
    return commits


def _is_ordinary(commit: Commit) -> bool:
    """Return whether the commit's checks can be part of the statements that write it.

    Effects, list items and audit links have owners and chains that must be read first; a deletion
    touches many tables; a large state has rows of its own.
    """
    if commit.effects or commit.lists or commit.audit or commit.tombstone:
        return False
    return commit.state is None or len(commit.state) <= STATE_CHUNK_BYTES


def _has_rows(commit: Commit) -> bool:
    return bool(
        commit.kv
        or commit.sends
        or commit.reminders
        or commit.consumes is not None
        or commit.fired is not None
    )


def apply_together(
    transaction: Transaction, commits: Sequence[Commit], *, is_first: bool
) -> list[CommitReceipt] | None:
    """Write ``commits`` and return their receipts, or change nothing and return None.

    With ``is_first`` nothing was written in this transaction before, so undoing is beginning it
    anew. Otherwise there is a savepoint, for which the engine copies every page aside before its
    first change: half the time of a batch of large states.
    """
    connection = transaction.connection
    mark = transaction.mark()
    plan = _Plan(transaction)
    if not is_first:
        connection.execute("SAVEPOINT together")
    receipts = [plan.add(commit) for commit in commits]
    held = plan.run(connection)
    if not held:
        _undo(transaction, None if is_first else mark)
        return None
    if not is_first:
        connection.execute("RELEASE together")
    transaction.replies_written += plan.count_replies()
    transaction.calls_written += plan.count_calls()
    transaction.now_ms = max(transaction.now_ms, plan.now_ms)
    assert len(receipts) == len(commits), "every commit has a receipt"
    return receipts


def _undo(transaction: Transaction, mark: dict[Counter, int] | None) -> None:
    """Go back to the savepoint and its ``mark``, or without one to the transaction's begin."""
    if mark is None:
        transaction.begin_anew()
        return
    assert transaction.connection.in_transaction, "a savepoint lies inside one"
    transaction.execute("ROLLBACK TO together")
    transaction.execute("RELEASE together")
    transaction.reset(mark)
