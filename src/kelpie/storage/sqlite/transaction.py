"""One write transaction: what its members share.

A member is a function of the transaction. It either refuses, by raising a `KelpieError` before its
first write, or it writes everything it has to; so a refusal needs no savepoint and costs the other
members nothing.

Never touches asyncio.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Literal

from kelpie.core.limits import SHARD_COUNT
from kelpie.storage import refusals
from kelpie.storage.audit import GENESIS, AuditHead

Counter = Literal["event", "message"]
Member = Callable[["Transaction"], Any]


class Transaction:
    """The connection inside a transaction, with what was read of counters, epochs and chains.

    Lives as long as the transaction: a rollback discards it with everything it counted.
    """

    __slots__ = (
        "_counters",
        "_epochs",
        "_has_epochs",
        "_heads",
        "calls_written",
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
        self.calls_written = 0
        self.now_ms = 0
        self._has_epochs = False
        self._epochs: dict[int, int] = {}
        self._heads: dict[int, AuditHead] = {}
        self._counters: dict[Counter, int] = {}

    def read_epochs(self) -> dict[int, int]:
        """Return the epoch of every shard that anybody ever owned; reads them once."""
        if not self._has_epochs:
            self._epochs.update(self.execute("SELECT shard, epoch FROM shards").fetchall())
            self._has_epochs = True
            assert min(self._epochs.values(), default=1) >= 0, "an epoch only grows from zero"
        assert len(self._epochs) <= SHARD_COUNT, "there are no other shards"
        return self._epochs

    def epoch_of(self, shard: int) -> int:
        """Return the shard's epoch, 0 when nobody ever owned it; reads it once."""
        current = self._epochs.get(shard)
        if current is None:
            row = self.execute("SELECT epoch FROM shards WHERE shard = ?", (shard,)).fetchone()
            current = self._epochs[shard] = row[0] if row else 0
        assert current >= 0, "an epoch never goes back"
        return current

    def require_epoch(self, shard: int, epoch: int) -> None:
        """Return if ``epoch`` is the shard's own.

        Raises:
            FencedError: It is another.
        """
        current = self.epoch_of(shard)
        if current != epoch:
            raise refusals.fenced(shard, epoch, current)

    def raise_epoch(self, shard: int, epoch: int) -> None:
        """Remember the epoch that this transaction gave a shard."""
        assert 0 <= shard < SHARD_COUNT, "there are no other shards"
        assert epoch > self._epochs.get(shard, 0), "an epoch only grows"
        self._epochs[shard] = epoch

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

    def mark(self) -> dict[Counter, int]:
        """Return the counters as they are, for `reset`."""
        return self._counters.copy()

    def reset(self, mark: dict[Counter, int]) -> None:
        """Take back the numbers taken since `mark`: what they were for was undone."""
        assert mark.keys() <= self._counters.keys(), "a counter once read stays known"
        assert all(self._counters[name] >= value for name, value in mark.items()), "taken since"
        self._counters = mark

    def begin_anew(self) -> None:
        """Undo everything written so far, and go on as if the transaction had just begun."""
        assert self.connection.in_transaction, "there is something to undo"
        self.execute("ROLLBACK")
        self.execute("BEGIN IMMEDIATE")
        self.replies_written = self.list_deletions = self.now_ms = 0
        # A stranger could have written in between: nothing read before counts any more.
        self._has_epochs = False
        self._epochs.clear()
        self._heads.clear()
        self._counters.clear()
        assert self.connection.in_transaction, "it goes on"

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
