"""Rows and commits: what a turn asks the store to make durable in one transaction.

Every row is keyed by tenant and carries its actor's shard; every commit carries the shard's epoch.
Bodies are opaque bytes to the store: higher rooms encode them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import msgspec

from kelpie.core.digests import Digest
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import INTEGER_MIN

EffectState = Literal[
    "proposed",
    "waiting",
    "approved",
    "started",
    "done",
    "failed",
    "denied",
    "expired",
    "voided",
    "cancelled",
    "unknown",
]
CallState = Literal["pending", "completed", "failed", "cancelled", "dead"]
"""Of a submitted call: ``failed`` was refused by its actor, ``dead`` failed too often."""
EFFECT_STATES_OPEN: tuple[EffectState, ...] = (
    "proposed",
    "waiting",
    "approved",
    "started",
    "unknown",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectRow:
    """One effect of one actor, as stored. Written whole at every transition.

    ``due_ms`` is the wall time at which something must happen without a person: an approval's
    expiry while ``waiting``, ``not_after`` while ``started``; 0 otherwise.
    ``session`` is the executor's session while ``started``.
    """

    effect_id: str
    actor: ActorId
    kind: str
    state: EffectState
    digest: Digest | None
    attempt: int
    session: str
    due_ms: int
    created_ms: int
    updated_ms: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """A message from one actor to another, before it is stored."""

    sender: ActorId
    receiver: ActorId
    body: bytes
    not_before_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message waiting in the outbox. Ids grow in the order of commit."""

    message_id: int
    sender: ActorId
    receiver: ActorId
    body: bytes
    attempts: int
    not_before_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReminderRow:
    """A durable timer of one actor; a later row with the same name replaces it."""

    actor: ActorId
    name: str
    due_ms: int
    body: bytes


class ReminderCursor(NamedTuple):
    """A place in the order of reminders: what is due first, then by actor and name."""

    due_ms: int
    actor: str
    name: str


REMINDERS_FIRST: Final = ReminderCursor(INTEGER_MIN, "", "")
"""Before every reminder."""


class KvPut(NamedTuple):
    """Set one key of the actor's own ordered map."""

    key: str
    value: bytes


class KvDelete(NamedTuple):
    """Remove one key; harmless when absent."""

    key: str


class ReminderDelete(NamedTuple):
    """Remove one reminder by name; harmless when absent."""

    name: str


class EventAppend(NamedTuple):
    """One row of the actor's event log; the store gives it the next ``sequence`` (from 1)."""

    kind: str
    body: bytes


class ListPut(NamedTuple):
    """One row of a projection that this actor owns, ordered by (``sort_key``, ``item_id``)."""

    collection: str
    item_id: str
    sort_key: str
    body: bytes


class ListDelete(NamedTuple):
    """Remove one owned projection row; harmless when absent."""

    collection: str
    item_id: str


class AuditAppend(NamedTuple):
    """One audit record; the store gives it its place and hash in the shard's chain."""

    kind: str
    principal: str
    body: bytes


class ReplyRecord(NamedTuple):
    """The reply to a request that carried an idempotency key, kept until ``expires_ms``."""

    method: str
    key: str
    request: Digest
    reply: bytes
    expires_ms: int


class CallEnd(NamedTuple):
    """How a submitted call ended, kept until ``expires_ms``.

    ``body`` is the result of one that completed, and the error of one that failed or is dead.
    """

    state: CallState
    body: bytes
    at_ms: int
    expires_ms: int


class Commit(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything one turn changes; all of it becomes durable, or none.

    A struct because every turn makes one: a frozen dataclass of this many fields costs twenty
    times as much. The collector need not look at it, since nothing in it can point back.

    ``expected_version`` is the actor's version before the turn, 0 when it does not exist yet; the
    turn's own version is one more. ``incarnation`` counts from 1 and grows with every deletion.
    ``state`` is None when the turn left the state as it was; its ``schema_version`` stays too.
    ``consumes`` names the outbox message, and ``fired`` the (name, due_ms) of the reminder, that
    caused the turn: the commit removes it, and is refused when it is gone. ``call`` is the end of
    the submitted call that the message was. ``tombstone`` deletes
    the actor: its rows go, its id may be used by a later incarnation. What it sent, its audit
    records and the events of this last commit stay.
    """

    actor: ActorId
    shard: int
    epoch: int
    incarnation: int
    expected_version: int
    schema_version: int
    now_ms: int
    state: bytes | None = None
    kv: tuple[KvPut | KvDelete, ...] = ()
    effects: tuple[EffectRow, ...] = ()
    sends: tuple[OutboxRow, ...] = ()
    consumes: int | None = None
    fired: tuple[str, int] | None = None
    reminders: tuple[ReminderRow | ReminderDelete, ...] = ()
    events: tuple[EventAppend, ...] = ()
    lists: tuple[ListPut | ListDelete, ...] = ()
    audit: tuple[AuditAppend, ...] = ()
    reply: ReplyRecord | None = None
    call: CallEnd | None = None
    tombstone: bool = False


class CommitReceipt(NamedTuple):
    """What the store gave a durable commit.

    ``message_ids`` follow the order of ``Commit.sends``; ``first_event_sequence`` is the sequence
    of the first appended event (0 without events).
    """

    version: int
    message_ids: tuple[int, ...]
    first_event_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredActor:
    """An actor as loaded: its state and its open effects, from one snapshot.

    ``tombstoned`` is set when the id belongs to a deleted incarnation; ``state`` is then empty and
    ``version`` 0: what the first commit of the next incarnation (this one plus 1) expects.
    """

    actor: ActorId
    incarnation: int
    version: int
    schema_version: int
    state: bytes
    effects: tuple[EffectRow, ...]
    event_sequence: int
    tombstoned: bool


class ActorRow(NamedTuple):
    """A living actor in a list: everything but its state."""

    actor: ActorId
    incarnation: int
    version: int
    updated_ms: int


class StoredEvent(NamedTuple):
    """One row of an event log. ``position`` orders all events of the store by commit."""

    position: int
    actor: ActorId
    sequence: int
    at_ms: int
    kind: str
    body: bytes


class StoredReply(NamedTuple):
    """A kept reply to an idempotent request."""

    request: Digest
    reply: bytes
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A call to be kept and delivered: ``body`` is the message, ``sender`` its place in line.

    ``key`` is the caller's idempotency key, empty without one; ``request`` the call's digest.
    """

    call_id: str
    actor: ActorId
    method: str
    sender: ActorId
    principal: str
    key: str
    request: Digest
    body: bytes
    now_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCall:
    """A submitted call. ``ended_ms`` and ``expires_ms`` are 0 while it is pending.

    ``message_id`` names its message, which waits in the outbox while the call is pending. ``body``
    is as in `CallEnd`, and empty in lists.
    """

    call_id: str
    actor: ActorId
    method: str
    principal: str
    key: str
    request: Digest
    message_id: int
    state: CallState
    created_ms: int
    ended_ms: int
    expires_ms: int
    body: bytes


class StoredPause(NamedTuple):
    """An actor that a person paused, and who did it when."""

    actor: ActorId
    principal: str
    at_ms: int


class ListItem(NamedTuple):
    """One projection row."""

    item_id: str
    sort_key: str
    owner: ActorId
    body: bytes


class StreamChunk(NamedTuple):
    """One piece of an effect's stream; ``sequence`` counts from 1 within (effect, attempt)."""

    effect_id: str
    attempt: int
    sequence: int
    kind: str
    body: bytes


class AuditRecord(NamedTuple):
    """One link of a shard's audit chain.

    ``hash`` is SHA-256 over the previous hash and this record's fields; see
    ``kelpie.storage.audit``.
    """

    shard: int
    sequence: int
    at_ms: int
    actor: ActorId
    kind: str
    principal: str
    body: bytes
    previous: bytes
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message or reminder that failed too often, with the last error.

    A reminder's sender is its receiver, and ``error`` begins with the reminder's name.
    """

    message_id: int
    sender: ActorId
    receiver: ActorId
    body: bytes
    attempts: int
    error: str
    at_ms: int


class ShardGrant(NamedTuple):
    """A shard this session owns, and the epoch every commit to it must carry."""

    shard: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A request for a page of rows: at most ``limit``, strictly after ``after`` if given.

    ``after`` and ``before`` are item ids; ``descending`` reverses the order first. ``before``
    alone asks for the page that ends there: the last ``limit`` rows before it, still in order.
    """

    tenant: Tenant
    limit: int
    after: str | None = None
    before: str | None = None
    descending: bool = False
