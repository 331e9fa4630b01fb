"""The Store protocol, split by capability; ``Store`` is all of them.

Promises that every engine keeps (``tests/contract/store`` holds them):

- A commit is atomic, and durable when its future resolves.
- Commits of one actor apply in the order of their submission; one refused commit never fails
  another member of its batch, except later commits of the same actor, which its version check
  refuses.
- A commit is refused when its shard's epoch is not the one it carries, checked in the same
  transaction.
- Reads never see a part of a commit.
- Nothing is truncated silently: a row beyond its limit is a ``LimitExceededError``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import INTEGER_MIN
from kelpie.storage.records import (
    REMINDERS_FIRST,
    ActorRow,
    AuditRecord,
    CallEnd,
    CallState,
    Commit,
    CommitReceipt,
    DeadLetter,
    EffectRow,
    EffectState,
    ListItem,
    Page,
    ReminderCursor,
    ReminderRow,
    ShardGrant,
    StoredActor,
    StoredCall,
    StoredEvent,
    StoredMessage,
    StoredPause,
    StoredReply,
    StreamChunk,
    Submission,
)


class ActorStore(Protocol):
    """Actors and their commits."""

    async def load(self, actor: ActorId) -> StoredActor | None:
        """Return the actor's last durable version, or None if it never existed.

        Raises:
            CorruptionError: Its checksum does not match; the error names the actor.
            ActorMovedError: It was exported.
        """
        ...

    async def actors(
        self, tenant: Tenant, type_name: str, *, after: str, limit: int
    ) -> list[ActorRow]:
        """Return up to ``limit`` living actors of a type with a key above ``after``, by key."""
        ...

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        """Queue ``commit``; the future resolves once it is durable.

        Queueing happens before this method returns, so calls without an await between them keep
        their order.

        Raises (when awaited):
            FencedError: The shard's epoch has moved.
            VersionConflictError: The actor's version is not the expected one.
            MessageGoneError: The consumed message or reminder does not exist any more.
            ConflictError: An effect or list item belongs to another actor.
            KeyReusedError: The idempotency key has a living reply already.
            InvalidFieldError: A text is no valid Unicode, or an integer does not fit 64 bits.
            OverloadedError: Too many commits wait for the disk.
            LimitExceededError: The commit is larger than a transaction may be.
            DiskFullError: No space; nothing was kept.
            CommitUnknownError: The engine failed in a way that leaves the outcome open.
        """
        ...

    async def reply(self, actor: ActorId, method: str, key: str) -> StoredReply | None:
        """Return the kept reply for an idempotency key of the actor's living incarnation."""
        ...


class KvStore(Protocol):
    """An actor's own ordered map."""

    async def kv_get(self, actor: ActorId, key: str) -> bytes | None:
        """Return one value."""
        ...

    async def kv_range(
        self, actor: ActorId, start: str, end: str, *, limit: int, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        """Return up to ``limit`` pairs with ``start <= key < end``, in key order."""
        ...


class WorkStore(Protocol):
    """What recovery and the outbox pump drive: messages and open effects."""

    async def outbox(self, after_id: int, limit: int) -> list[StoredMessage]:
        """Return waiting messages with id > ``after_id``, by id."""
        ...

    async def outbox_failed(
        self, message_id: int, *, error: str, retry_at_ms: int | None, now_ms: int
    ) -> None:
        """Count a failed delivery; with ``retry_at_ms`` None the message becomes a dead letter.

        Harmless when the message was consumed meanwhile.
        """
        ...

    async def dead_letters(
        self, tenant: Tenant, limit: int, *, type_name: str | None = None
    ) -> list[DeadLetter]:
        """Return the tenant's newest dead letters, of all receivers or those of one type."""
        ...

    async def replay_dead_letter(self, tenant: Tenant, message_id: int) -> int:
        """Move a dead letter back into the outbox, with all its attempts; return its new id.

        Raises:
            NotFoundError: The tenant has no such dead letter.
        """
        ...

    async def effects_open(self, after_id: str, limit: int) -> list[EffectRow]:
        """Return effects in an open state with id > ``after_id``, by id."""
        ...


class ReminderStore(Protocol):
    """Durable timers."""

    async def reminders_due(
        self, now_ms: int, limit: int, *, after: ReminderCursor = REMINDERS_FIRST
    ) -> list[ReminderRow]:
        """Return reminders with ``due_ms <= now_ms`` above ``after``, by (due, actor, name)."""
        ...

    async def reminder_next_ms(self, *, after_ms: int = INTEGER_MIN) -> int | None:
        """Return the earliest ``due_ms`` above ``after_ms``."""
        ...

    async def bury_reminder(
        self, reminder: ReminderRow, *, attempts: int, error: str, now_ms: int
    ) -> None:
        """Make a reminder a dead letter from its actor to itself, with a message's new id.

        Harmless when it fired, was cancelled or moved meanwhile.
        """
        ...


class CallStore(Protocol):
    """Submitted calls: messages of callers outside, each with a row that keeps its end."""

    async def submit_call(self, submission: Submission, *, epoch: int) -> StoredCall:
        """Keep a call and its message; durable when it returns.

        A key that came before with the same request gives the call of that time.

        Raises:
            FencedError: The shard's epoch has moved.
            KeyReusedError: The key came before with another request.
            OverloadedError: The tenant has too many calls that have not ended.
        """
        ...

    async def end_call(self, message_id: int, end: CallEnd, *, error: str = "") -> bool:
        """End the call of a waiting message without a turn; return whether it was pending.

        The message goes; that of a ``dead`` call becomes a dead letter with ``error``.
        """
        ...

    async def call(self, tenant: Tenant, call_id: str) -> StoredCall | None:
        """Return one call, unless its end has expired."""
        ...

    async def calls(
        self, page: Page, *, state: CallState | None = None, actor: ActorId | None = None
    ) -> list[StoredCall]:
        """Return calls by (created_ms, id), without their bodies.

        Raises:
            NotFoundError: A cursor names no call of the tenant.
        """
        ...


class PauseStore(Protocol):
    """Actors that people paused; each change is in the audit chain of the actor's shard."""

    async def pause_actor(self, pause: StoredPause, *, epoch: int) -> bool:
        """Note a pause, and return whether the actor was not paused before.

        Raises:
            FencedError: The shard's epoch has moved.
            OverloadedError: Too many actors are paused.
        """
        ...

    async def resume_actor(self, pause: StoredPause, *, epoch: int) -> bool:
        """Note the end of a pause, and return whether there was one.

        Raises:
            FencedError: The shard's epoch has moved.
        """
        ...

    async def pauses(self) -> list[StoredPause]:
        """Return every paused actor of the store, by name."""
        ...


class EffectStore(Protocol):
    """Effects as people look for them."""

    async def effect(self, tenant: Tenant, effect_id: str) -> EffectRow | None:
        """Return one effect, in whatever state."""
        ...

    async def effects(
        self, page: Page, *, states: Sequence[EffectState] = (), actor: ActorId | None = None
    ) -> list[EffectRow]:
        """Return effects by (created_ms, id); empty ``states`` means all."""
        ...


class EventStore(Protocol):
    """Event logs, lists and streams."""

    async def events(self, actor: ActorId, after: int, limit: int) -> list[StoredEvent]:
        """Return the actor's events with sequence > ``after``, gapless and in order.

        Raises:
            CursorAheadError: ``after`` is beyond the newest event.
            CursorExpiredError: The events after ``after`` (> 0) were removed.
        """
        ...

    async def event_newest(self, actor: ActorId) -> int | None:
        """Return the sequence of a living actor's newest event, 0 if it has none.

        None when there is no such actor. Reads no state.
        """
        ...

    async def events_tail(
        self, tenant: Tenant, after_position: int, limit: int
    ) -> list[StoredEvent]:
        """Return all the tenant's events with position > ``after_position``, in commit order.

        Raises:
            CursorAheadError: ``after_position`` is beyond the newest event.
        """
        ...

    async def list_page(self, collection: str, page: Page) -> list[ListItem]:
        """Return projection rows of the tenant in (sort_key, item_id) order."""
        ...

    async def list_item(self, tenant: Tenant, collection: str, item_id: str) -> ListItem | None:
        """Return one projection row."""
        ...

    def stream_append(
        self, actor: ActorId, epoch: int, chunks: Sequence[StreamChunk]
    ) -> Awaitable[None]:
        """Queue stream chunks; fenced like a commit, durable when the awaitable resolves.

        Raises (when awaited):
            NotFoundError: The actor does not exist.
            ConflictError: A chunk's sequence is not above those kept of its attempt.
        """
        ...

    async def stream(
        self, actor: ActorId, effect_id: str, attempt: int, after: int, limit: int
    ) -> list[StreamChunk]:
        """Return chunks of one attempt with sequence > ``after``."""
        ...


class AuditStore(Protocol):
    """The audit chains."""

    def audit(self, tenant: Tenant) -> AsyncIterator[AuditRecord]:
        """Yield the tenant's audit records, by shard and sequence.

        Chains hold the records of every tenant; verifying needs ``audit_chain``.
        """
        ...

    def audit_chain(self, shard: int) -> AsyncIterator[AuditRecord]:
        """Yield every record of one shard's chain, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counts and sizes of a store."""

    actors: int
    effects_open: int
    outbox: int
    reminders: int
    events: int
    dead_letters: int
    size_bytes: int
    incarnation: str
    held: bool
    schema_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What compacting did to the file's size, and which blobs it removed."""

    before_bytes: int
    after_bytes: int
    blobs_removed: int
    blob_bytes_removed: int


class AdminStore(Protocol):
    """Care of the whole store."""

    @property
    def session(self) -> str:
        """This holder's session id; a new one at every open."""
        ...

    @property
    def held(self) -> bool:
        """Whether the store waits for a release after a restore: effects and timers rest."""
        ...

    def grants(self) -> Sequence[ShardGrant]:
        """Return the shards this session owns, with their epochs."""
        ...

    async def release(self) -> None:
        """End the held state."""
        ...

    async def stats(self) -> StoreStats:
        """Return counts and sizes."""
        ...

    async def backup(self, target: Path) -> None:
        """Write a consistent copy of the whole store, blobs included, beside a running server.

        Raises:
            ConflictError: ``target`` exists.
        """
        ...

    async def compact(self) -> Compaction:
        """Give the space of removed rows and unnamed blobs back, beside a running server.

        Works in slices between commits; free space that appears meanwhile is left for the next
        time. A blob goes when no row names it, and nobody put it within
        ``BLOB_UNNAMED_KEEP_MS``. What was done before a failure stays done.

        Raises:
            ConflictError: The file was made without the bookkeeping that this needs, or a backup
                is being made.
        """
        ...

    async def close(self) -> None:
        """Finish queued commits, then let go of the store."""
        ...


class Store(
    ActorStore,
    KvStore,
    WorkStore,
    CallStore,
    PauseStore,
    ReminderStore,
    EffectStore,
    EventStore,
    AuditStore,
    AdminStore,
    Protocol,
):
    """All capabilities of one engine."""
