"""The tables of a cluster: the shipped schema and statements, over a database in memory.

What a member of a transaction does is decided by `kelpie.storage.sqlite.nodes`; here it is run, one
transaction after the other, from whatever the tables hold.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

from kelpie.core.errors import KelpieError
from kelpie.storage.cluster import ClusterView, ShardRow
from kelpie.storage.sqlite.batch import run_batch
from kelpie.storage.sqlite.migrations import migrate
from kelpie.storage.sqlite.nodes import read_cluster
from kelpie.storage.sqlite.transaction import Transaction


class Stored(NamedTuple):
    """All that the tables hold."""

    sessions: tuple[tuple[Any, ...], ...]
    shards: tuple[tuple[Any, ...], ...]


class ClusterTables:
    """Sessions and shards in a database."""

    def __init__(self, connection: sqlite3.Connection, shard_count: int) -> None:
        """Make the tables, with ``shard_count`` shards that nobody owns."""
        self._connection = connection
        migrate(connection)
        rows = [(shard,) for shard in range(shard_count)]
        connection.executemany("INSERT INTO shards (shard, epoch, session) VALUES (?, 1, '')", rows)

    def run(self, member: Callable[[Transaction], Any]) -> Any:
        """Run one transaction and return what it came to: its value, or why it was refused."""
        (outcome,) = run_batch(self._connection, [member], None).outcomes
        assert not self._connection.in_transaction, "a transaction has ended"
        if isinstance(outcome, KelpieError):
            return outcome.with_traceback(None)
        return outcome

    def view(self) -> ClusterView:
        """Return the sessions and the shards."""
        return read_cluster(self._connection)

    def save(self) -> Stored:
        """Return all that the tables hold."""
        sessions = self._connection.execute("SELECT * FROM sessions ORDER BY session").fetchall()
        shards = self._connection.execute("SELECT * FROM shards ORDER BY shard").fetchall()
        return Stored(tuple(sessions), tuple(ShardRow(*row) for row in shards))

    def restore(self, stored: Stored) -> None:
        """Let the tables hold what they held when it was saved."""
        execute = self._connection.execute
        assert not self._connection.in_transaction, "nothing is half done"
        execute("BEGIN")
        for table, rows in (("sessions", stored.sessions), ("shards", stored.shards)):
            execute(f"DELETE FROM {table}")  # noqa: S608  a constant of this function
            for row in rows:
                marks = ", ".join("?" * len(row))
                execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608  as above
        execute("COMMIT")
        assert self.save() == stored, "what was saved is there again"
