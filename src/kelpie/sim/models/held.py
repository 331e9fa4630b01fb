"""An actor that keeps a total, and a store that answers when it is told to.

The reads, the take-over and the commits are those of `kelpie.storage.sqlite`, over a database in
memory; what is held back is only the moment of each load and commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import msgspec

from kelpie.actors.commands import Message, Reply
from kelpie.actors.machine import Decision, Turn
from kelpie.core.errors import CommitUnknownError, KelpieError, StoreError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.sim.models.still import NOW_MS, StillClock
from kelpie.storage.records import Commit, CommitReceipt, ShardGrant, StoredActor
from kelpie.storage.sqlite.batch import run_batch
from kelpie.storage.sqlite.opening import take_over
from kelpie.storage.sqlite.reads import SqliteReads

ACTOR: Final = ActorId(TENANT_DEFAULT, "total", "t")
STRANGERS: Final = tuple(ActorId(TENANT_DEFAULT, "total", f"stranger-{n}") for n in range(2))


# --- the actor ----------------------------------------------------------------------------------


class RaiseTotal(Message, frozen=True, tag="total.raise"):
    """Add to the total; replies with the new one."""

    reply_type: ClassVar[Any] = int

    amount: int


class ShowTotal(Message, frozen=True, tag="total.show"):
    """Query: the total."""


class TotalMachine:
    """A number that grows."""

    type_name: str = "total"
    schema_version: int = 1
    message_type: Any = RaiseTotal | ShowTotal

    def create(self, actor: ActorId) -> int:
        """Return the number of an actor that nobody called."""
        assert actor.type == self.type_name, "a total machine keeps totals"
        return 0

    def load(self, stored: StoredActor) -> int:
        """Decode a number."""
        return msgspec.msgpack.decode(stored.state, type=int)

    def dump(self, state: int) -> bytes:
        """Encode a number."""
        return msgspec.msgpack.encode(state)

    def decide(self, state: int, message: Message, turn: Turn) -> Decision[int]:
        """Add."""
        assert isinstance(message, RaiseTotal), f"{turn.actor} can only be raised"
        total = state + message.amount
        return Decision(state=total, commands=(Reply(value=total),))

    def query(self, state: int, query: Message) -> int:
        """Return the number."""
        assert isinstance(query, ShowTotal), "there is one question"
        return state


# --- the store, which answers when it is told to ------------------------------------------------


class Waiting(NamedTuple):
    """A commit on its way to the disk, and who waits for it."""

    commit: Commit
    future: asyncio.Future[CommitReceipt]


class HeldStore(SqliteReads):
    """The shipped reads and statements, each let go by an event.

    Attributes:
        loads: Loads that have not ended.
        waiting: Commits on their way, in order.
    """

    __slots__ = ("_grants", "connection", "has_failed", "loads", "waiting")

    def __init__(self, connection: sqlite3.Connection, number: int) -> None:
        super().__init__(Path("memory"), connection, StillClock())
        self.connection = connection
        self.loads: deque[asyncio.Future[None]] = deque()
        self.waiting: deque[Waiting] = deque()
        self.has_failed = False
        self._grants = take_over(connection, f"session-{number}", NOW_MS, "incarnation")

    def grants(self) -> Sequence[ShardGrant]:
        """Return what this process owns."""
        return self._grants

    async def load(self, actor: ActorId) -> StoredActor | None:
        """Load once an event lets go; strangers at once."""
        if actor == ACTOR:
            gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.loads.append(gate)
            await gate
        assert not self.loads or actor == ACTOR or actor in STRANGERS, "nobody else is here"
        return await super().load(actor)

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Queue a commit; strangers' are written at once."""
        assert commit.epoch >= 1, "a process owns what it writes to"
        future: asyncio.Future[CommitReceipt] = asyncio.get_running_loop().create_future()
        if self.has_failed:
            future.set_exception(StoreError("the store stopped"))
        else:
            self.waiting.append(Waiting(commit, future))
        assert future.done() == self.has_failed, "a stopped store takes nothing"
        return future

    def write(self, count: int) -> None:
        """Let the oldest ``count`` commits reach the disk together, and tell."""
        assert count <= len(self.waiting), "only what waits is written"
        batch = [self.waiting.popleft() for _ in range(count)]
        outcomes = self.put([waiting.commit for waiting in batch])
        assert len(outcomes) == count, "each commit has an outcome"
        for waiting, outcome in zip(batch, outcomes, strict=True):
            settle(waiting.future, outcome)

    def put(self, commits: Sequence[Commit]) -> Sequence[Any]:
        """Write a batch and return its outcomes."""
        return run_batch(self.connection, commits, None).outcomes

    def fail(self, *, is_kept: bool) -> None:
        """Let the disk fail under the oldest commit, which may be there or not; then stop."""
        assert self.waiting, "a disk fails under a commit"
        oldest = self.waiting.popleft()
        if is_kept:
            self.put([oldest.commit])
        self.has_failed = True
        settle(oldest.future, CommitUnknownError("the disk failed"))
        while self.waiting:
            settle(self.waiting.popleft().future, StoreError("the store stopped"))
        assert not self.waiting, "nothing waits for a stopped store"


def settle(future: asyncio.Future[CommitReceipt], outcome: Any) -> None:
    """Tell who waits, unless it is gone."""
    if future.done():
        return
    if isinstance(outcome, KelpieError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
