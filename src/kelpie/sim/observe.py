"""Watches one process's commits: a store that hands everything on and tells the world what landed.

Holds nothing of the product and decides nothing. A commit is reported at the moment its writer can
learn of it, before anybody acts on it; one that became durable while its writer died is found in
the store by the next life.

Invariants: every durable commit is reported once, those of an actor in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from kelpie.core.errors import CommitUnknownError, KelpieError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import DEAD_LETTERS_PAGE_MAX
from kelpie.sim.book import Book, Letter
from kelpie.sim.loop import observing
from kelpie.storage.records import (
    AuditRecord,
    CallEnd,
    Commit,
    CommitReceipt,
    ReminderRow,
    StoredActor,
    StoredCall,
    Submission,
)
from kelpie.storage.sqlite.store import SqliteStore

Landed = Callable[[str, Commit, CommitReceipt | None], None]
"""Told of a durable commit: the writer's session, the commit, and its receipt if it got one."""

Loaded = Callable[[ActorId, int, StoredActor | None], None]
"""Told of a read: the actor, how many commits had been seen when it began, and what it gave."""


class InFlight:
    """Commits that were handed to a machine's store and have no outcome yet; outlives processes."""

    def __init__(self) -> None:
        self._waiting: dict[ActorId, list[tuple[str, Commit]]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether every commit has its outcome."""
        return not self._waiting

    def begin(self, session: str, commit: Commit) -> None:
        """Note a commit that was handed over."""
        assert session, "who commits has a session"
        self._waiting.setdefault(commit.actor, []).append((session, commit))
        assert self._waiting[commit.actor][-1][1] is commit

    def end(self, commit: Commit) -> None:
        """Note that a commit has its outcome."""
        queue = self._waiting.get(commit.actor, [])
        assert any(each is commit for _, each in queue), "an outcome of what was never handed over"
        queue[:] = [(session, each) for session, each in queue if each is not commit]
        assert all(each is not commit for _, each in queue), "a commit has one outcome"
        if not queue:
            del self._waiting[commit.actor]

    def take(self) -> dict[ActorId, list[tuple[str, Commit]]]:
        """Return and forget what has no outcome: its writer is dead."""
        taken, self._waiting = self._waiting, {}
        assert not self._waiting
        assert all(taken.values()), "an actor without a commit waits"
        return taken


class ObservedStore:
    """Everything an engine offers, with its commits reported."""

    def __init__(
        self,
        inner: SqliteStore,
        in_flight: InFlight,
        landed: Landed,
        *,
        loaded: Loaded,
        commits: Callable[[], int],
        released: Callable[[], None],
        book: Callable[[], Book],
    ) -> None:
        self._inner = inner
        self._in_flight = in_flight
        self._landed = landed
        self._loaded = loaded
        self._commits = commits
        self._released = released
        self._book = book
        self._context = observing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def recover(self) -> None:
        """Report what a dead writer made durable without hearing of it."""
        for actor, waiting in self._in_flight.take().items():
            stored = await self._inner.load(actor)
            for session, commit in waiting:
                if stored is not None and _has_landed(commit, stored.incarnation, stored.version):
                    self._landed(session, commit, None)

    async def has_landed(self, commit: Commit) -> bool:
        """Whether a commit whose program died is there."""
        stored = await self._inner.load(commit.actor)
        return stored is not None and _has_landed(commit, stored.incarnation, stored.version)

    async def audit_rows(self, tenant: Tenant) -> list[AuditRecord]:
        """Return what `audit` yields."""
        return [record async for record in self._inner.audit(tenant)]

    async def chain_rows(self, shard: int) -> list[AuditRecord]:
        """Return what `audit_chain` yields."""
        return [record async for record in self._inner.audit_chain(shard)]

    async def load(self, actor: ActorId) -> StoredActor | None:
        """Return what the engine answers, and report it."""
        seen = self._commits()
        stored = await self._inner.load(actor)
        self._loaded(actor, seen, stored)
        return stored

    async def release(self) -> None:
        """End the held state, and report it before anything can follow from it."""
        self._released()
        await self._inner.release()

    async def submit_call(self, submission: Submission, *, epoch: int) -> StoredCall:
        """Hand a call on, and report first that its message may be stored from now on."""
        sender, receiver = str(submission.sender), str(submission.actor)
        letter = Letter(sender, receiver, submission.body)
        book = self._book()
        book.expect(letter)
        try:
            stored = await self._inner.submit_call(submission, epoch=epoch)
        except CommitUnknownError:
            raise  # it may be there
        except KelpieError:
            book.take_back(letter)
            raise
        if stored.state == "pending":
            book.number(letter, stored.message_id)
        else:
            book.take_back(letter)
        return stored

    async def end_call(self, message_id: int, end: CallEnd, *, error: str = "") -> bool:
        """Hand an end on, and report first that its message may be gone from now on."""
        self._book().release(message_id)
        return await self._inner.end_call(message_id, end, error=error)

    async def bury_reminder(
        self, reminder: ReminderRow, *, attempts: int, error: str, now_ms: int
    ) -> None:
        """Hand a burial on, and report first that the reminder may be gone from now on."""
        self._book().bury(reminder)
        await self._inner.bury_reminder(reminder, attempts=attempts, error=error, now_ms=now_ms)

    async def replay_dead_letter(self, tenant: Tenant, message_id: int) -> int:
        """Hand the wish on, and report first that the message may be stored from now on."""
        for letter in await self._inner.dead_letters(tenant, DEAD_LETTERS_PAGE_MAX):
            if letter.message_id == message_id:
                sender, receiver = str(letter.sender), str(letter.receiver)
                self._book().expect(Letter(sender, receiver, letter.body))
        return await self._inner.replay_dead_letter(tenant, message_id)

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Hand the commit on and report it once it is durable."""
        return self.commit_for(self._inner.session, commit)

    def commit_for(self, session: str, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Hand on the commit of a session, which may be that of another node, and report it."""
        self._in_flight.begin(session, commit)
        future = self._inner.commit(commit)
        future.add_done_callback(partial(self._settled, session, commit), context=self._context)
        return future

    def _settled(self, session: str, commit: Commit, done: asyncio.Future[CommitReceipt]) -> None:
        if done.cancelled():
            return  # the next life looks what became of it
        if isinstance(done.exception(), CommitUnknownError):
            # If it is there, readers see it, and a repeated request is answered from it.
            if not self._is_there(commit):
                return
            self._in_flight.end(commit)
            self._landed(session, commit, None)
            return
        self._in_flight.end(commit)
        if done.exception() is None:
            self._landed(session, commit, done.result())

    def _is_there(self, commit: Commit) -> bool:
        """Whether a commit without an outcome can be read; False when that cannot be told now."""
        looking = self._inner.load(commit.actor)
        try:
            looking.send(None)
        except StopIteration as found:
            stored = found.value
        except KelpieError:
            return False
        else:
            looking.close()
            return False
        return stored is not None and _has_landed(commit, stored.incarnation, stored.version)


def _has_landed(commit: Commit, incarnation: int, version: int) -> bool:
    if commit.tombstone:  # its life is over, or a later one has begun
        is_over = incarnation == commit.incarnation and version == 0
        return is_over or incarnation > commit.incarnation
    return incarnation == commit.incarnation and version > commit.expected_version
