"""Commits written together leave what commits written one by one would have left."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.actors.callers import caller_id
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import FencedError, KelpieError, OverloadedError, VersionConflictError
from kelpie.core.limits import CALLS_KEPT_MAX, STATE_CHUNK_BYTES
from kelpie.storage.records import (
    AuditAppend,
    CallEnd,
    Commit,
    EventAppend,
    KvDelete,
    KvPut,
    OutboxRow,
    ReminderDelete,
    ReminderRow,
    ReplyRecord,
    Submission,
)
from kelpie.storage.sqlite.batch import run_batch
from kelpie.storage.sqlite.bulk import apply_together
from kelpie.storage.sqlite.calls import submit_call
from kelpie.storage.sqlite.engine import connect_writer
from kelpie.storage.sqlite.migrations import migrate
from kelpie.storage.sqlite.rows import keep_house
from kelpie.storage.sqlite.transaction import Member, Transaction
from tests.contract.store.world import NOW_MS, actor_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACTORS = [actor_id(name) for name in ("ada", "bob", "eve", "kim")]
TABLES = {
    "actors": "actor",
    "kv": "actor, incarnation, key",
    "outbox": "message_id",
    "reminders": "actor, incarnation, name",
    "events": "position",
    "replies": "actor, incarnation, method, key",
    "audit": "shard, sequence",
    "state_chunks": "actor, chunk",
    "calls": "call_id",
    "call_counts": "tenant",
    "counters": "name",
}


def open_writer(path: Path) -> sqlite3.Connection:
    writer = connect_writer(path)
    migrate(writer)
    shards = ((actor.shard,) for actor in ACTORS)
    writer.executemany("INSERT OR IGNORE INTO shards VALUES (?, 1, 's', '')", shards)
    return writer


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    with (
        closing(open_writer(tmp_path / "together.db")) as together,
        closing(open_writer(tmp_path / "alone.db")) as alone,
    ):
        yield together, alone


def dump(connection: sqlite3.Connection) -> dict[str, list[Any]]:
    return {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()
        for table, order in TABLES.items()
    }


def make(actor: int, version: int, **changes: Any) -> Commit:
    fields: dict[str, Any] = {
        "actor": ACTORS[actor],
        "shard": ACTORS[actor].shard,
        "epoch": 1,
        "incarnation": 1,
        "expected_version": version,
        "schema_version": 1,
        "now_ms": NOW_MS,
    }
    return Commit(**(fields | changes))


class Author:
    """Writes random commits: of an even seed they all succeed, of an odd one some are refused."""

    def __init__(self, seed: int) -> None:
        self.is_tame = seed % 2 == 0
        self.chance = random.Random(seed)
        self.versions = [0] * len(ACTORS)
        self.incarnations = [1] * len(ACTORS)
        self.messages = 0
        self.now_ms = NOW_MS

    def write(self) -> Commit:
        actor = self.chance.randrange(len(ACTORS))
        version = self.versions[actor]
        if self.errs(0.04):
            version += 1
        changes: dict[str, Any] = {
            "incarnation": self.incarnations[actor],
            "schema_version": self.chance.randint(1, 2),
            "now_ms": self.now_ms + self.chance.randrange(10),
            "epoch": 2 if self.errs(0.02) else 1,
        }
        for fill in (self.fill_state, self.fill_rows, self.fill_causes, self.fill_rare):
            fill(actor, changes)
        if version == self.versions[actor] and changes["epoch"] == 1:
            self.versions[actor] += 1
            if changes.get("tombstone"):
                self.versions[actor], self.incarnations[actor] = 0, self.incarnations[actor] + 1
        return make(actor, version, **changes)

    def flip(self, share: float) -> bool:
        return self.chance.random() < share

    def errs(self, share: float) -> bool:
        return not self.is_tame and self.flip(share)

    def fill_state(self, actor: int, changes: dict[str, Any]) -> None:
        if self.flip(0.7):
            changes["state"] = self.chance.randbytes(self.chance.randrange(40))
        if self.flip(0.03):
            changes["state"] = bytes(STATE_CHUNK_BYTES + 1)

    def fill_rows(self, actor: int, changes: dict[str, Any]) -> None:
        name = self.chance.choice("abc")
        if self.flip(0.3):
            put = KvPut(name, self.chance.randbytes(4))
            changes["kv"] = (put, KvDelete(self.chance.choice("abc")))
        if self.flip(0.3):
            changes["events"] = (EventAppend("e", self.chance.randbytes(3)),) * 2
        if self.flip(0.3):
            changes["sends"] = (
                OutboxRow(sender=ACTORS[actor], receiver=self.chance.choice(ACTORS), body=b"m"),
            )
        if self.flip(0.3):
            due_ms = NOW_MS + self.chance.randrange(3)
            row = ReminderRow(actor=ACTORS[actor], name=name, due_ms=due_ms, body=b"r")
            changes["reminders"] = (row, ReminderDelete(self.chance.choice("abc")))
        if self.flip(0.4):
            request = digest_bytes(self.chance.randbytes(1))
            name = self.chance.randbytes(8).hex() if self.is_tame else name
            changes["reply"] = ReplyRecord("m", name, request, b"yes", self.now_ms + 5)

    def fill_causes(self, actor: int, changes: dict[str, Any]) -> None:
        if self.errs(0.03):
            changes["consumes"] = self.chance.randrange(1, 30)
        if self.errs(0.03):
            changes["fired"] = (self.chance.choice("abc"), NOW_MS + self.chance.randrange(3))

    def fill_rare(self, actor: int, changes: dict[str, Any]) -> None:
        if self.flip(0.05):
            changes["audit"] = (AuditAppend("a", "p", b"x"),)
        if self.flip(0.02):
            changes["tombstone"] = True


def outcomes_of(result: list[Any]) -> list[Any]:
    return [type(o) if isinstance(o, KelpieError) else o for o in result]


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_and_its_members_alone_leave_the_same_file(
    writers: tuple[sqlite3.Connection, sqlite3.Connection], seed: int
) -> None:
    together, alone = writers
    author = Author(seed)
    for _ in range(12):
        # Time moves, so that kept replies expire and their keys are used anew.
        author.now_ms += 3
        batch = [author.write() for _ in range(author.chance.randrange(1, 40))]
        seen = run_batch(together, batch, keep_house).outcomes
        expected: list[Any] = []
        transaction_now_ms = max(commit.now_ms for commit in batch)
        for commit in batch:
            expected += run_batch(alone, [commit], None).outcomes
        run_batch(alone, [], keep_house)
        assert outcomes_of(seen) == outcomes_of(expected)
        assert not author.is_tame or not any(isinstance(o, KelpieError) for o in seen)
        living = "DELETE FROM replies WHERE expires_ms <= ?"
        for connection in writers:
            connection.execute(living, (transaction_now_ms,))
            while run_batch(connection, [], keep_house).has_more:
                pass
        assert dump(together) == dump(alone)
        # A version the author counted on may have been refused: begin from what is there.
        for actor, version, incarnation, gone in together.execute(
            "SELECT actor, version, incarnation, tombstoned FROM actors"
        ):
            index = [str(known) for known in ACTORS].index(actor)
            author.versions[index] = 0 if gone else version
            author.incarnations[index] = incarnation + gone


def test_turns_of_one_actor_follow_each_other_within_a_batch(
    writers: tuple[sqlite3.Connection, sqlite3.Connection],
) -> None:
    writer, _ = writers
    commits = [
        make(0, version, state=b"%d" % version, events=(EventAppend("e", b""),))
        for version in range(50)
    ]
    result = run_batch(writer, commits, None)
    assert [o.version for o in result.outcomes] == list(range(1, 51))
    assert [o.first_event_sequence for o in result.outcomes] == list(range(1, 51))
    row = writer.execute("SELECT version, event_sequence, state FROM actors").fetchone()
    assert row == (50, 50, b"49")


def test_a_refused_commit_in_the_middle_costs_the_others_nothing(
    writers: tuple[sqlite3.Connection, sqlite3.Connection],
) -> None:
    writer, _ = writers
    commits = [make(actor, 0, state=b"s") for actor in range(3)]
    commits.insert(1, make(0, 7, state=b"wrong"))
    commits.insert(3, make(3, 0, state=b"old", epoch=9))
    seen = outcomes_of(run_batch(writer, commits, None).outcomes)
    assert (seen[1], seen[3]) == (VersionConflictError, FencedError)
    assert writer.execute("SELECT count(*), sum(version) FROM actors").fetchone() == (3, 3)


@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_not_written_together_leaves_no_trace(
    writers: tuple[sqlite3.Connection, sqlite3.Connection],
    is_first: bool,  # a parameter of the test
) -> None:
    writer, _ = writers
    run_batch(writer, [make(0, 0, state=b"first")], None)
    before = dump(writer)
    writer.execute("BEGIN IMMEDIATE")
    transaction = Transaction(writer)
    send = OutboxRow(sender=ACTORS[1], receiver=ACTORS[0], body=b"m")
    commits = [make(1, 0, sends=(send,)), make(0, 5), make(2, 0, events=(EventAppend("e", b""),))]
    assert apply_together(transaction, commits, is_first=is_first) is None
    transaction.save_counters()
    writer.execute("COMMIT")
    assert dump(writer) == before
    assert transaction.take("message", 1) == 1


def submit(number: int) -> Member:
    """A member that submits a call to one of the actors."""
    actor = ACTORS[number % len(ACTORS)]
    submission = Submission(
        call_id=f"call-{number:02}",
        actor=actor,
        method="add",
        sender=caller_id(actor.tenant, "local"),
        principal="local",
        key="",
        request=digest_bytes(b"%d" % number),
        body=b"%d" % number,
        now_ms=NOW_MS,
    )
    return partial(submit_call, submission=submission, epoch=1)


@pytest.mark.requirement("CALL-ONCE")
def test_calls_that_end_in_one_batch_end_as_they_would_alone(
    writers: tuple[sqlite3.Connection, sqlite3.Connection],
) -> None:
    together, alone = writers
    calls = 12
    for connection in writers:
        assert not run_batch(connection, list(map(submit, range(calls))), keep_house).has_more
        connection.execute("DELETE FROM calls WHERE call_id = 'call-05'")  # it was forgotten
    end = CallEnd("completed", b"result", NOW_MS, NOW_MS + 5)
    commits = [
        make(number % 4, number // 4, state=b"%d" % number, consumes=number + 1, call=end)
        for number in range(calls)
    ]
    seen = run_batch(together, commits, keep_house).outcomes
    assert outcomes_of(seen) == [
        outcome for commit in commits for outcome in run_batch(alone, [commit], None).outcomes
    ]
    assert dump(together) == dump(alone)
    states = together.execute("SELECT state, body FROM calls").fetchall()
    assert states == [("completed", b"result")] * (calls - 1)
    assert together.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


@pytest.mark.requirement("CALL-EXPIRES")
def test_a_full_house_forgets_the_oldest_ended_call_or_takes_no_more(
    writers: tuple[sqlite3.Connection, sqlite3.Connection],
) -> None:
    writer, _ = writers
    run_batch(writer, [submit(1), submit(2)], keep_house)
    end = CallEnd("completed", b"result", NOW_MS, NOW_MS + 5)
    run_batch(writer, [make(1, 0, state=b"s", consumes=1, call=end)], keep_house)
    writer.execute("UPDATE call_counts SET kept = ?", (CALLS_KEPT_MAX,))
    assert outcomes_of(run_batch(writer, [submit(3)], keep_house).outcomes) != [OverloadedError]
    kept = writer.execute("SELECT call_id FROM calls ORDER BY call_id").fetchall()
    assert kept == [("call-02",), ("call-03",)]
    assert outcomes_of(run_batch(writer, [submit(4)], keep_house).outcomes) == [OverloadedError]
    assert writer.execute("SELECT kept FROM call_counts").fetchone() == (CALLS_KEPT_MAX,)
    assert writer.execute("SELECT count(*) FROM outbox").fetchone() == (2,)
