"""What a store says when it refuses: the same words, whichever engine found the reason."""

from __future__ import annotations

from kelpie.core.errors import (
    ConflictError,
    FencedError,
    KeyReusedError,
    MessageGoneError,
    OverloadedError,
    VersionConflictError,
)
from kelpie.core.limits import CALLS_KEPT_MAX, PAUSED_ACTORS_MAX
from kelpie.storage.records import Commit, ReplyRecord, StreamChunk, Submission


def fenced(shard: int, epoch: int, current: int) -> FencedError:
    """The shard's epoch is not the one that was carried."""
    return FencedError(
        f"shard {shard} is at epoch {current}, this commit carries {epoch}; "
        "its owner has changed, ask the new one",
        shard=shard,
        epoch=epoch,
        current=current,
    )


def version_conflict(
    commit: Commit, *, incarnation: int, version: int, is_tombstoned: bool
) -> VersionConflictError:
    """The actor is not at the version that the commit expects."""
    actor = str(commit.actor)
    state = "deleted" if is_tombstoned else f"at version {version}"
    return VersionConflictError(
        f"{actor} is {state}, incarnation {incarnation}; this commit expects version "
        f"{commit.expected_version} of incarnation {commit.incarnation}; load it again",
        actor=actor,
        expected=commit.expected_version,
        version=version,
        incarnation=incarnation,
    )


def message_gone(actor: str, message_id: int) -> MessageGoneError:
    """The message that caused the turn was consumed before."""
    message = f"message {message_id} to {actor} was consumed before; drop this turn"
    return MessageGoneError(message, actor=actor, message_id=message_id)


def reminder_gone(actor: str, name: str, due_ms: int) -> MessageGoneError:
    """The reminder that caused the turn is gone or was moved."""
    message = f"reminder {name!r} of {actor} is gone or was moved; drop this turn"
    return MessageGoneError(message, actor=actor, reminder=name, due_ms=due_ms)


def effect_owned(effect_id: str, owner: str) -> ConflictError:
    """The effect's id is another actor's."""
    message = f"effect {effect_id!r} belongs to {owner}; use a new id"
    return ConflictError(message, effect_id=effect_id, owner=owner)


def item_owned(collection: str, item_id: str, owner: str) -> ConflictError:
    """The list item is another actor's."""
    message = f"{collection} item {item_id!r} belongs to {owner}"
    return ConflictError(message, item_id=item_id, owner=owner)


def key_reused(actor: str, reply: ReplyRecord, *, kept_request: str) -> KeyReusedError:
    """The idempotency key has a living reply."""
    what = "this request" if kept_request == reply.request else "another request"
    message = f"key {reply.key!r} was used for {what} before; read its reply"
    return KeyReusedError(message, actor=actor, method=reply.method, key=reply.key)


def chunk_behind(chunk: StreamChunk, newest: int) -> ConflictError:
    """The stream's chunk does not come after those of its attempt."""
    return ConflictError(
        f"chunk {chunk.sequence} of {chunk.effect_id!r} comes after {newest}; begin a new attempt",
        effect_id=chunk.effect_id,
        sequence=chunk.sequence,
    )


def call_key_reused(call: Submission) -> KeyReusedError:
    """The key of a submitted call came before with another request."""
    message = f"Idempotency-Key {call.key[:64]!r} was used for another {call.method} request"
    return KeyReusedError(f"{message}; choose a new key", key=call.key[:64])


def too_many_calls() -> OverloadedError:
    """A tenant has as many calls as it may have, and none of them has ended."""
    message = f"{CALLS_KEPT_MAX:,} calls of this tenant have not ended; try again later"
    return OverloadedError(message, limit=CALLS_KEPT_MAX)


def too_many_pauses() -> OverloadedError:
    """As many actors are paused as may be."""
    message = f"{PAUSED_ACTORS_MAX:,} actors are paused; resume some before"
    return OverloadedError(message, limit=PAUSED_ACTORS_MAX)
