"""One write transaction: what its members share, and the batch that runs them.

A member is a function of the transaction. It either refuses, by raising a `KelpieError` before its
first write, or it writes everything it has to; so a refusal needs no savepoint and costs the other
members nothing. Should the engine fail inside a member, the batch is rolled back and its members
run again one by one, each in a transaction of its own, so that only the culprit fails.

Runs off the event loop; never touches asyncio.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

from kelpie.core.errors import CommitUnknownError, FencedError, KelpieError
from kelpie.storage.audit import GENESIS, AuditHead
from kelpie.storage.sqlite.engine import primary_code, translate_error

Counter = Literal["event", "message"]
Member = Callable[["Transaction"], Any]
Finish = Callable[["Transaction"], bool]
Outcome = Any  # a member's value, or the KelpieError that refused it

# These say something about the disk or about strangers, not about one member.
_COMMON_FAILURES: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
)


class Transaction:
    """The connection inside a transaction, with what was read of counters, epochs and chains.

    Lives as long as the transaction: a rollback discards it with everything it counted.
    """

    __slots__ = (
        "_counters",
        "_epochs",
        "_heads",
        "connection",
        "execute",
        "list_deletions",
        "now_ms",
        "replies_written",
    )

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.replies_written = 0
        self.list_deletions = 0
        self.now_ms = 0
        self._epochs: dict[int, int] = {}
        self._heads: dict[int, AuditHead] = {}
        self._counters: dict[Counter, int] = {}

    def require_epoch(self, shard: int, epoch: int) -> None:
        """Return if ``epoch`` is the shard's own.

        Raises:
            FencedError: It is another.
        """
        current = self._epochs.get(shard)
        if current is None:
            row = self.execute("SELECT epoch FROM shards WHERE shard = ?", (shard,)).fetchone()
            current = self._epochs[shard] = row[0] if row else 0
        assert current >= 0, "an epoch never goes back"
        if current != epoch:
            raise FencedError(
                f"shard {shard} is at epoch {current}, this commit carries {epoch}; "
                "its owner has changed, ask the new one",
                shard=shard,
                epoch=epoch,
                current=current,
            )

    def take(self, counter: Counter, count: int) -> int:
        """Return the first of ``count`` new numbers, which follow each other."""
        assert count >= 1, "taking nothing gives no number"
        value = self._counters.get(counter)
        if value is None:
            query = "SELECT value FROM counters WHERE name = ?"
            (value,) = self.execute(query, (counter,)).fetchone()
        assert value >= 0, "a counter never goes back"
        self._counters[counter] = value + count
        return value + 1

    def audit_head(self, shard: int) -> AuditHead:
        """Return the newest link of the shard's audit chain, this transaction's included."""
        head = self._heads.get(shard)
        if head is None:
            query = "SELECT sequence, hash FROM audit WHERE shard = ? ORDER BY sequence DESC"
            row = self.execute(f"{query} LIMIT 1", (shard,)).fetchone()
            head = AuditHead(shard, row[0], row[1]) if row else AuditHead(shard, 0, GENESIS)
            self._heads[shard] = head
        assert head.shard == shard, "a head of another chain"
        assert head.sequence >= 0, "a chain counts from one"
        return head

    def advance_audit(self, head: AuditHead) -> None:
        """Remember the link just written."""
        assert head.sequence == self.audit_head(head.shard).sequence + 1, "a chain has no gap"
        self._heads[head.shard] = head

    def save_counters(self) -> None:
        """Write the counters that moved; the last step before the commit."""
        for name, value in self._counters.items():
            assert value >= 1, "a counter that moved has given a number"
            query = "UPDATE counters SET value = ? WHERE name = ? AND value <= ?"
            moved = self.execute(query, (value, name, value)).rowcount
            assert moved == 1, "a counter exists and never goes back"


class BatchResult(NamedTuple):
    """What became of a batch.

    ``outcomes`` follow the members. ``has_more`` says that removal of deleted actors' rows waits
    for another batch. ``fatal`` is set when nobody knows what the disk holds: no commit may follow
    on this connection.
    """

    outcomes: list[Outcome]
    has_more: bool
    fatal: KelpieError | None = None


def run_batch(
    connection: sqlite3.Connection, members: Sequence[Member], finish: Finish | None
) -> BatchResult:
    """Run ``members`` in order in one transaction, and commit it.

    Args:
        connection: The writing connection, outside a transaction.
        members: What to write; may be empty, when only ``finish`` has work.
        finish: Housekeeping inside the same transaction; returns whether more is left.
    """
    assert not connection.in_transaction, "a batch begins its own transaction"
    try:
        outcomes, has_more = _write(connection, members, finish)
    except sqlite3.Error as error:
        _roll_back(connection)
        if finish is not None and primary_code(error) not in _COMMON_FAILURES:
            return _run_alone(connection, members)
        failure = translate_error(error, "the commit")
        return BatchResult([failure] * len(members), has_more=False)
    except BaseException:
        _roll_back(connection)
        raise
    refusal = _commit(connection)
    if refusal is not None:
        outcomes = [o if isinstance(o, KelpieError) else refusal for o in outcomes]
        has_more = False
    assert len(outcomes) == len(members), "every member has an outcome"
    is_fatal = isinstance(refusal, CommitUnknownError)
    return BatchResult(outcomes, has_more, refusal if is_fatal else None)


def _write(
    connection: sqlite3.Connection,
    members: Sequence[Member],
    finish: Finish | None,
) -> tuple[list[Outcome], bool]:
    connection.execute("BEGIN IMMEDIATE")
    transaction = Transaction(connection)
    outcomes: list[Outcome] = []
    for member in members:
        changes = connection.total_changes
        try:
            outcomes.append(member(transaction))
        except KelpieError as refusal:
            assert connection.total_changes == changes, "a refused member has written nothing"
            outcomes.append(refusal)
    has_more = finish is not None and finish(transaction)
    transaction.save_counters()
    return outcomes, has_more


def _run_alone(connection: sqlite3.Connection, members: Sequence[Member]) -> BatchResult:
    """Run each member in a transaction of its own, and leave the housekeeping for later."""
    outcomes: list[Outcome] = []
    for index, member in enumerate(members):
        result = run_batch(connection, [member], None)
        outcomes += result.outcomes
        if result.fatal is not None:
            rest = len(members) - index - 1
            return BatchResult(
                outcomes + result.outcomes * rest, has_more=False, fatal=result.fatal
            )
    return BatchResult(outcomes, has_more=False)


def _commit(connection: sqlite3.Connection) -> KelpieError | None:
    """Commit; return the failure, if any: a `CommitUnknownError` when the outcome is open."""
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        is_known = primary_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}
        _roll_back(connection)
        if is_known:
            return translate_error(error, "the commit")
        message = f"the disk failed while committing ({error}); restart to learn what was kept"
        return CommitUnknownError(message)
    assert not connection.in_transaction, "a commit ends the transaction"
    return None


def _roll_back(connection: sqlite3.Connection) -> None:
    # The engine ends the transaction by itself after some failures.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
