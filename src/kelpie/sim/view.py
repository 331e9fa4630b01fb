"""What the world saw become durable, and the invariants that are checked over it.

Built from commits as they pass, never from the product's memory: an oracle that asks the product
would believe its mistakes.

Invariants: nothing here changes the product; a view only grows by whole commits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kelpie.core.ids import ActorId
from kelpie.sim.book import Book, StoreSeen
from kelpie.sim.edge import HttpAnswer
from kelpie.storage.records import (
    AuditAppend,
    Commit,
    CommitReceipt,
    EffectRow,
    ShardGrant,
    StoredActor,
)

ActorPlace = tuple[str, ActorId]
"""The machine whose store has the actor, and its id."""


class ActorSeen(NamedTuple):
    """The newest durable version of an actor, and who wrote it."""

    session: str
    epoch: int
    incarnation: int
    version: int
    state: bytes | None
    is_deleted: bool


class CommitSeen(NamedTuple):
    """One durable commit.

    Attributes:
        receipt: What the writer was told; None when it died before it heard, and the next life
            found the commit in the store.
    """

    host: str
    session: str
    commit: Commit
    receipt: CommitReceipt | None
    at_ns: int


class ReadSeen(NamedTuple):
    """What a store answered when an actor was loaded; ``commits`` had been seen when it began."""

    host: str
    actor: ActorId
    commits: int
    stored: StoredActor | None


class LeaseSeen(NamedTuple):
    """What one transaction did to a session of a shared store, and to shards.

    Attributes:
        kind: ``renewed``, ``claimed``, ``released`` or ``ended``.
        grants: The shards, with their epochs from then on; those of an ended session are not named.
    """

    host: str
    kind: str
    session: str
    grants: tuple[ShardGrant, ...]


class AnswerSeen(NamedTuple):
    """What a client was told, and between which moments it waited for it."""

    host: str
    method: str
    target: str
    key: str | None
    answer: HttpAnswer
    asked_ns: int
    answered_ns: int


@dataclass(slots=True, kw_only=True)
class View:
    """What invariants look at. They must not change it.

    Attributes:
        now_ns: The world's time.
        last: The commit that was just seen; None at the end of a run.
        commits: How many there were.
        actors: The newest durable version of every actor, by machine and id.
        effects: The newest durable row of every effect.
        audit: The audit records of every actor, in the order of its commits.
        log: Every commit in the order in which it became durable.
        said: What clients, people and models did, for oracles: free for scenarios to use.
        books: What each machine's store must hold by the commits before ``last``.
        look: What a store's file holds; None except while it is looked at.
        read: What a store answered; None except at that moment.
        lease: What became of a session or of shards; None except at that moment.
        answers: What clients were told, in order.
        is_over: Whether the run has come to its end.
        released: Machines whose restored store may drive its work.
    """

    now_ns: int = 0
    last: CommitSeen | None = None
    commits: int = 0
    actors: dict[ActorPlace, ActorSeen] = field(default_factory=dict[ActorPlace, ActorSeen])
    effects: dict[str, EffectRow] = field(default_factory=dict[str, EffectRow])
    audit: dict[ActorId, list[AuditAppend]] = field(
        default_factory=dict[ActorId, list[AuditAppend]]
    )
    log: list[CommitSeen] = field(default_factory=list[CommitSeen])
    said: dict[str, list[object]] = field(default_factory=dict[str, list[object]])
    books: dict[str, Book] = field(default_factory=dict[str, Book])
    look: StoreSeen | None = None
    read: ReadSeen | None = None
    lease: LeaseSeen | None = None
    answers: list[AnswerSeen] = field(default_factory=list[AnswerSeen])
    is_over: bool = False
    released: set[str] = field(default_factory=set[str])

    def book_of(self, host: str) -> Book:
        """Return what the machine's store must hold."""
        assert host, "a store is some machine's"
        book = self.books.setdefault(host, Book())
        assert self.books[host] is book, "a machine has one book"
        return book

    def note_commit(self, seen: CommitSeen) -> None:
        """Take one durable commit into account."""
        commit = seen.commit
        assert seen.at_ns >= self.now_ns, "commits are seen in the order of time"
        place = (seen.host, commit.actor)
        before = self.actors.get(place)
        state = commit.state
        if state is None and before is not None:
            state = before.state
        self.actors[place] = ActorSeen(
            session=seen.session,
            epoch=commit.epoch,
            incarnation=commit.incarnation,
            version=commit.expected_version + 1,
            state=None if commit.tombstone else state,
            is_deleted=commit.tombstone,
        )
        self.effects.update((row.effect_id, row) for row in commit.effects)
        if commit.audit:
            self.audit.setdefault(commit.actor, []).extend(commit.audit)
        self.now_ns = seen.at_ns
        self.last = seen
        self.commits += 1
        self.log.append(seen)
        assert len(self.log) == self.commits, "every commit is in the log once"


class Invariant(Protocol):
    """Something that always holds. One instance serves one run and may remember."""

    @property
    def name(self) -> str:
        """Its stable name."""
        ...

    def check(self, view: View) -> str | None:
        """Return what is wrong in a sentence; None while it holds. Called at every commit."""
        ...


@dataclass(frozen=True, slots=True)
class Predicate:
    """An invariant made of a name and a function."""

    name: str
    test: Callable[[View], str | None]

    def check(self, view: View) -> str | None:
        """Return what the function returns."""
        return self.test(view)


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """What went wrong first in a run.

    Attributes:
        invariant: Its stable name, so that a smaller run can be held against the same one.
        text: What is wrong, in a sentence.
    """

    invariant: str
    text: str
    step: int
    at_ns: int
