"""One batch: the transaction that its members share, from BEGIN to a durable COMMIT.

Commits that stand side by side are written together, statement by statement (see `bulk`); every
other member is a function that runs for itself. Should the engine fail inside a member, the batch
is rolled back and its members run again one by one, each in a transaction of its own, so that only
the culprit fails.

Runs off the event loop; never touches asyncio.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from kelpie.core.errors import CommitUnknownError, KelpieError, VersionConflictError
from kelpie.ports.faults import fault
from kelpie.storage.records import Commit
from kelpie.storage.sqlite.bulk import BULK_COMMITS_MIN, apply_together, take_ordinary
from kelpie.storage.sqlite.commits import apply_commit
from kelpie.storage.sqlite.engine import primary_code, translate_error
from kelpie.storage.sqlite.injected import engine_error
from kelpie.storage.sqlite.transaction import Member, Transaction

Work = Commit | Member
Finish = Callable[[Transaction], bool]
Outcome = Any  # a member's value, or the KelpieError that refused it

# These say something about the disk or about strangers, not about one member.
_COMMON_FAILURES: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
)


class BatchResult(NamedTuple):
    """What became of a batch.

    ``outcomes`` follow the members. ``has_more`` says that removal of deleted actors' rows waits
    for another batch. ``fatal`` is set when nobody knows what the disk holds: no commit may follow
    on this connection. ``changes`` counts the rows written.
    """

    outcomes: list[Outcome]
    has_more: bool
    fatal: KelpieError | None = None
    changes: int = 0


def run_batch(
    connection: sqlite3.Connection, members: Sequence[Work], finish: Finish | None
) -> BatchResult:
    """Run ``members`` in order in one transaction, and commit it.

    Args:
        connection: The writing connection, outside a transaction.
        members: What to write; may be empty, when only ``finish`` has work.
        finish: Housekeeping inside the same transaction; returns whether more is left.
    """
    assert not connection.in_transaction, "a batch begins its own transaction"
    fault("crash.before_write")
    before = connection.total_changes
    try:
        outcomes, has_more, written = _write(connection, members, finish)
    except sqlite3.Error as error:
        _roll_back(connection)
        if finish is not None and primary_code(error) not in _COMMON_FAILURES:
            return _run_alone(connection, members)
        failure = translate_error(error, "the commit")
        return BatchResult([failure] * len(members), has_more=False)
    except BaseException:
        _roll_back(connection)
        raise
    refusal = _commit(connection, writes=written > 0)
    if refusal is not None:
        outcomes = [o if isinstance(o, KelpieError) else refusal for o in outcomes]
        has_more = False
    assert len(outcomes) == len(members), "every member has an outcome"
    is_fatal = isinstance(refusal, CommitUnknownError)
    changes = connection.total_changes - before
    return BatchResult(outcomes, has_more, refusal if is_fatal else None, changes)


def _write(
    connection: sqlite3.Connection, members: Sequence[Work], finish: Finish | None
) -> tuple[list[Outcome], bool, int]:
    """Return the outcomes, whether housekeeping is left, and how many rows stay written."""
    _begin(connection)
    transaction = Transaction(connection)
    undone = connection.total_changes
    outcomes: list[Outcome] = []
    while len(outcomes) < len(members):
        start = len(outcomes)
        commits = take_ordinary(transaction, members, start)
        together = None
        if len(commits) >= BULK_COMMITS_MIN:
            before = connection.total_changes
            together = apply_together(transaction, commits, is_first=start == 0)
            undone += 0 if together is not None else connection.total_changes - before
        if together is not None:
            outcomes += together
        else:
            alone = members[start : start + max(len(commits), 1)]
            outcomes += [_apply(transaction, member) for member in alone]
    _fail_halfway()
    has_more = finish is not None and finish(transaction)
    transaction.save_counters()
    return outcomes, has_more, connection.total_changes - undone


def _begin(connection: sqlite3.Connection) -> None:
    if fault("storage.locked"):
        raise engine_error(sqlite3.SQLITE_BUSY)
    if fault("storage.write_fail"):
        raise engine_error(sqlite3.SQLITE_IOERR)
    connection.execute("BEGIN IMMEDIATE")


def _fail_halfway() -> None:
    """Where the disk may fail, or the process die, between a transaction's statements."""
    if fault("storage.partial_write"):
        raise engine_error(sqlite3.SQLITE_IOERR)
    if fault("storage.disk_full"):
        raise engine_error(sqlite3.SQLITE_FULL)
    fault("crash.during_transaction")


def _apply(transaction: Transaction, member: Work) -> Outcome:
    changes = transaction.connection.total_changes
    try:
        if isinstance(member, Commit):
            if fault("concurrency.access_conflict"):
                raise VersionConflictError(f"another turn of {member.actor} committed first")
            return apply_commit(transaction, member)
        return member(transaction)
    except KelpieError as refusal:
        unchanged = transaction.connection.total_changes == changes
        assert unchanged, "a refused member has written nothing"
        return refusal


def _run_alone(connection: sqlite3.Connection, members: Sequence[Work]) -> BatchResult:
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


def _commit(connection: sqlite3.Connection, *, writes: bool) -> KelpieError | None:
    """Commit; return the failure, if any: a `CommitUnknownError` when the outcome is open.

    ``writes`` says whether the transaction changed rows: else there is nothing to be torn.
    """
    try:
        if fault("concurrency.deadlock"):
            raise engine_error(sqlite3.SQLITE_BUSY)
        if fault("storage.commit_lost"):
            raise engine_error(sqlite3.SQLITE_IOERR)
        connection.execute("COMMIT")
        if writes:
            fault("crash.during_commit")
        if fault("storage.commit_kept"):
            raise engine_error(sqlite3.SQLITE_IOERR)
    except sqlite3.Error as error:
        is_known = primary_code(error) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}
        _roll_back(connection)
        if is_known:
            return translate_error(error, "the commit")
        message = f"the disk failed while committing ({error}); restart to learn what was kept"
        return CommitUnknownError(message)
    assert not connection.in_transaction, "a commit ends the transaction"
    fault("crash.after_write")
    return None


def _roll_back(connection: sqlite3.Connection) -> None:
    # The engine ends the transaction by itself after some failures.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
