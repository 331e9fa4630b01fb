"""The bounds of a commit, checked before it is queued.

Every text must be encodable, every integer must fit 64 bits, every value its limit: what passes
here cannot be refused by an engine half-way through a commit.

Never changes a value: a row beyond its limit is an error, nothing is cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.limits import (
    ACTOR_STATE_BYTES_MAX,
    EVENT_BYTES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    INTEGER_MAX,
    INTEGER_MIN,
    KV_KEY_BYTES_MAX,
    KV_VALUE_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    REMINDER_NAME_CHARS_MAX,
    STREAM_ROW_BYTES_MAX,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_OPERATIONS_MAX,
)
from kelpie.storage.records import (
    Commit,
    EffectRow,
    KvPut,
    ListPut,
    ReminderRow,
    ReplyRecord,
    StreamChunk,
    Submission,
)

TEXT_BYTES_MAX = 4 * KV_KEY_BYTES_MAX
"""Names that have no limit of their own: kinds, principals, sort keys, error texts."""


def text_bytes(field: str, value: str, limit: int = TEXT_BYTES_MAX) -> int:
    """Return the size of ``value`` in UTF-8 bytes.

    Raises:
        InvalidFieldError: It cannot be encoded (a lone surrogate).
        LimitExceededError: It is longer than ``limit`` bytes.
    """
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidFieldError(field, f"{value[:64]!r} is not valid Unicode") from None
    if size > limit:
        raise LimitExceededError(field, actual=size, limit=limit, unit="bytes")
    return size


def body_bytes(field: str, value: bytes, limit: int = TRANSACTION_BYTES_MAX) -> int:
    """Return the size of ``value``.

    Raises:
        LimitExceededError: It is larger than ``limit`` bytes.
    """
    size = len(value)
    if size > limit:
        raise LimitExceededError(field, actual=size, limit=limit, unit="bytes")
    return size


def require_integers(field: str, *values: int) -> None:
    """Return if every value fits a signed 64-bit integer.

    Raises:
        InvalidFieldError: One does not.
    """
    for value in values:
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise InvalidFieldError(field, f"{value} does not fit 64 bits")


def commit_bytes(commit: Commit) -> int:
    """Return how many bytes ``commit`` asks to store, after checking every bound.

    Raises:
        LimitExceededError: A value, or the commit as a whole, is too large; names the field.
        InvalidFieldError: A text or an integer cannot be stored; names the field.
    """
    # A commit to another shard than an existing actor's is found when its row is read.
    is_new = commit.expected_version == 0
    assert not is_new or commit.shard == commit.actor.shard, "a commit goes to its actor's shard"
    assert commit.incarnation >= 1, "incarnations count from one"
    assert commit.expected_version >= 0, "versions count from zero"
    _require_numbers(commit)
    state, reply = commit.state, commit.reply
    size = 0 if state is None else body_bytes("state", state, ACTOR_STATE_BYTES_MAX)
    if reply is not None:
        size += _reply_bytes(reply)
    if _has_rows(commit):
        size += _rows_bytes(commit)
    if size > TRANSACTION_BYTES_MAX:
        raise LimitExceededError(
            "transaction",
            actual=size,
            limit=TRANSACTION_BYTES_MAX,
            unit="bytes",
            hint="put large values into blobs",
        )
    return size


def _require_numbers(commit: Commit) -> None:
    """Check the commit's own integers; one expression for all of them when they are ordinary."""
    version = commit.expected_version + 1
    folded = commit.epoch | commit.incarnation | commit.now_ms | version | commit.schema_version
    if folded >> 63:  # one is negative or beyond 63 bits
        require_integers("commit", commit.epoch, commit.incarnation, commit.now_ms)
        require_integers("commit", version, commit.schema_version)


def _has_rows(commit: Commit) -> bool:
    """Return whether there is anything beside state and reply."""
    return bool(
        commit.kv
        or commit.effects
        or commit.sends
        or commit.reminders
        or commit.events
        or commit.lists
        or commit.audit
        or commit.consumes is not None
        or commit.fired is not None
    )


def _rows_bytes(commit: Commit) -> int:
    """Return the size of everything beside state and reply, after checking its bounds."""
    assert all(effect.actor == commit.actor for effect in commit.effects), "effects are one's own"
    rows = (
        *(commit.kv, commit.effects, commit.sends, commit.reminders),
        *(commit.events, commit.lists, commit.audit),
    )
    _require_operations(1 + sum(map(len, rows)))
    size = 0
    for write in commit.kv:
        size += text_bytes("kv.key", write.key, KV_KEY_BYTES_MAX)
        if isinstance(write, KvPut):
            size += body_bytes("kv.value", write.value, KV_VALUE_BYTES_MAX)
    size += sum(map(_effect_bytes, commit.effects))
    size += _message_bytes(commit)
    for event in commit.events:
        size += text_bytes("event.kind", event.kind)
        size += body_bytes("event.body", event.body, EVENT_BYTES_MAX)
    for item in commit.lists:
        size += text_bytes("list.collection", item.collection)
        size += text_bytes("list.item_id", item.item_id)
        if isinstance(item, ListPut):
            size += text_bytes("list.sort_key", item.sort_key) + body_bytes("list", item.body)
    for record in commit.audit:
        size += text_bytes("audit.kind", record.kind) + text_bytes("audit.by", record.principal)
        size += body_bytes("audit.body", record.body)
    return size


def stream_bytes(chunks: Sequence[StreamChunk]) -> int:
    """Return how many bytes ``chunks`` ask to store, after checking every bound.

    Raises:
        LimitExceededError: A chunk, or all of them together, are too large.
        InvalidFieldError: A text or an integer cannot be stored.
    """
    size = 0
    for chunk in chunks:
        assert chunk.sequence >= 1, "chunks count from one"
        require_integers("stream", chunk.attempt, chunk.sequence)
        size += text_bytes("stream.effect_id", chunk.effect_id)
        size += text_bytes("stream.kind", chunk.kind)
        size += body_bytes("stream.body", chunk.body, STREAM_ROW_BYTES_MAX)
    return body_count("stream", size, len(chunks))


def submission_bytes(submission: Submission) -> int:
    """Return how many bytes a submitted call asks to store, after checking every bound.

    Raises:
        LimitExceededError: A value is too large; names the field.
        InvalidFieldError: A text or an integer cannot be stored; names the field.
    """
    require_integers("call.now_ms", submission.now_ms)
    size = text_bytes("call.key", submission.key, IDEMPOTENCY_KEY_BYTES_MAX)
    for name in (submission.call_id, submission.method, submission.principal, submission.request):
        size += text_bytes("call", name)
    return size + body_bytes("call.body", submission.body, MESSAGE_BYTES_MAX)


def body_count(field: str, size: int, count: int) -> int:
    """Return ``size`` if neither it nor ``count`` is beyond a transaction.

    Raises:
        LimitExceededError: One is.
    """
    if count > TRANSACTION_OPERATIONS_MAX:
        limit = TRANSACTION_OPERATIONS_MAX
        raise LimitExceededError(field, actual=count, limit=limit, unit="operations")
    if size > TRANSACTION_BYTES_MAX:
        raise LimitExceededError(field, actual=size, limit=TRANSACTION_BYTES_MAX, unit="bytes")
    return size


def _require_operations(count: int) -> None:
    if count > TRANSACTION_OPERATIONS_MAX:
        raise LimitExceededError(
            "transaction",
            actual=count,
            limit=TRANSACTION_OPERATIONS_MAX,
            unit="operations",
            hint="spread the work over several turns",
        )


def _effect_bytes(effect: EffectRow) -> int:
    require_integers("effect", effect.attempt, effect.due_ms, effect.created_ms, effect.updated_ms)
    names = (effect.effect_id, effect.kind, effect.digest or "", effect.session)
    size = sum(text_bytes("effect", name) for name in names)
    return size + body_bytes("effect.body", effect.body)


def _message_bytes(commit: Commit) -> int:
    """Return the size of a commit's sends and reminders, and check what caused the turn."""
    size = 0
    for send in commit.sends:
        require_integers("send.not_before_ms", send.not_before_ms)
        size += body_bytes("send.body", send.body, MESSAGE_BYTES_MAX)
    for reminder in commit.reminders:
        size += text_bytes("reminder.name", reminder.name, 4 * REMINDER_NAME_CHARS_MAX)
        if len(reminder.name) > REMINDER_NAME_CHARS_MAX:
            raise LimitExceededError(
                "reminder.name",
                actual=len(reminder.name),
                limit=REMINDER_NAME_CHARS_MAX,
                unit="characters",
            )
        if isinstance(reminder, ReminderRow):
            assert reminder.actor == commit.actor, "reminders are one's own"
            require_integers("reminder.due_ms", reminder.due_ms)
            size += body_bytes("reminder.body", reminder.body, MESSAGE_BYTES_MAX)
    if commit.consumes is not None:
        require_integers("consumes", commit.consumes)
    if commit.call is not None:
        assert commit.consumes is not None, "a submitted call is a message"
        require_integers("call", commit.call.at_ms, commit.call.expires_ms)
        size += body_bytes("call", commit.call.body, MESSAGE_BYTES_MAX)
    if commit.fired is not None:
        text_bytes("fired.name", commit.fired[0], 4 * REMINDER_NAME_CHARS_MAX)
        require_integers("fired.due_ms", commit.fired[1])
    return size


def _reply_bytes(reply: ReplyRecord) -> int:
    require_integers("reply.expires_ms", reply.expires_ms)
    size = text_bytes("reply.method", reply.method)
    size += text_bytes("reply.key", reply.key, IDEMPOTENCY_KEY_BYTES_MAX)
    size += text_bytes("reply.request", reply.request)
    return size + body_bytes("reply.body", reply.reply)
