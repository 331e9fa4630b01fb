"""Writes that take a transaction of their own: each a function of the schema and what it returns.

Their fences name the epoch that this session holds when they are queued. What is harmless when it
comes too late is harmless as well when the shard has gone to another node, which sees to it itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from kelpie.core.errors import FencedError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import PAUSED_ACTORS_MAX
from kelpie.storage import refusals
from kelpie.storage.audit import AuditHead
from kelpie.storage.postgres import diagnosis
from kelpie.storage.postgres.lane import Lane
from kelpie.storage.postgres.link import RefusedError
from kelpie.storage.postgres.migrations.apply import CROWDED, FENCED
from kelpie.storage.postgres.plan import Plan
from kelpie.storage.records import AuditAppend, CallEnd, ReminderRow, StoredPause

_ATTEMPTS = 3


class Fence(NamedTuple):
    """A shard and the epoch that a write to it carries."""

    shard: int
    epoch: int


async def _call(lane: Lane, function: str, fence: Fence | None, now_ms: int, *values: Any) -> int:
    """Run a function of the schema.

    Raises:
        FencedError: The shard's epoch has moved.
    """
    fences = [] if fence is None else [tuple(fence)]
    try:
        return await lane.link.call(function, now_ms, fences, *values)
    except RefusedError as error:
        if fence is None or error.refused.code != FENCED:
            raise
        current = (await lane.link.ask(diagnosis.read_epochs)).get(fence.shard, 0)
        raise refusals.fenced(fence.shard, fence.epoch, current) from error


class FailMessage(NamedTuple):
    """Count a failed delivery, or bury the message."""

    fence: Fence
    message_id: int
    error: str
    retry_at_ms: int | None
    now_ms: int

    async def __call__(self, lane: Lane) -> None:
        """Carry it out; harmless when the message or its shard is gone."""
        values = (self.message_id, self.error, self.retry_at_ms)
        try:
            found = await _call(lane, "fail_message_1", self.fence, self.now_ms, *values)
        except FencedError:
            return
        assert found <= 1, "a message has one row"


class BuryReminder(NamedTuple):
    """Make a reminder a dead letter of its actor."""

    fence: Fence
    reminder: ReminderRow
    attempts: int
    error: str
    now_ms: int

    async def __call__(self, lane: Lane) -> None:
        """Carry it out; harmless when the reminder or its shard is gone."""
        assert self.attempts >= 1, "a dead letter was tried"
        row = self.reminder
        values = (str(row.actor), row.name, row.due_ms, self.attempts, self.error)
        try:
            found = await _call(lane, "bury_reminder_1", self.fence, self.now_ms, *values)
        except FencedError:
            return
        assert found <= 1, "a reminder has one row"


class ReviveMessage(NamedTuple):
    """Move a dead letter back into the outbox."""

    tenant: str
    message_id: int
    now_ms: int

    async def __call__(self, lane: Lane) -> int:
        """Carry it out and return the message's new id."""
        values = (self.tenant, self.message_id)
        revived_id = await _call(lane, "revive_message_1", None, self.now_ms, *values)
        if not revived_id:
            raise NotFoundError("dead letter", str(self.message_id))
        assert revived_id > self.message_id, "ids grow"
        return revived_id


class EndCall(NamedTuple):
    """End the call of a waiting message without a turn."""

    fence: Fence
    message_id: int
    end: CallEnd
    error: str

    async def __call__(self, lane: Lane) -> bool:
        """Carry it out and return whether the call was pending."""
        end = self.end
        assert end.state not in {"pending", "completed"}, "a call completes with its turn"
        assert end.expires_ms > end.at_ms, "an end is kept for some time"
        body = (end.expires_ms, crc32(end.body), end.body)
        values = (self.message_id, end.state, *body, self.error)
        return bool(await _call(lane, "end_call_1", self.fence, end.at_ms, *values))


class ChangePause(NamedTuple):
    """Pause an actor or end its pause, with the link in its shard's audit chain."""

    fence: Fence
    pause: StoredPause
    is_pause: bool

    async def __call__(self, lane: Lane) -> bool:
        """Carry it out and return whether it changed anything."""
        assert self.pause.at_ms > 0, "a pause begins at some time"
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._change(lane)
            except RefusedError as error:
                if error.refused.code == CROWDED:
                    raise refusals.too_many_pauses() from error
                lane.forget_head(self.fence.shard)
        return await self._change(lane)

    async def _change(self, lane: Lane) -> bool:
        actor, shard = self.pause.actor, self.fence.shard
        head, rows = await _link(lane, self.fence, actor, self._record(), self.pause.at_ms)
        said: tuple[Any, ...] = ()
        if self.is_pause:
            said = (actor.tenant, self.pause.principal, PAUSED_ACTORS_MAX)
        function = "pause_actor_1" if self.is_pause else "resume_actor_1"
        values = (str(actor), *said, rows)
        changed = await _call(lane, function, self.fence, self.pause.at_ms, *values)
        if changed:
            assert head.shard == shard, "a record lies in its actor's chain"
            lane.advance(head, self.fence.epoch)
        return bool(changed)

    def _record(self) -> AuditAppend:
        kind = "actor.paused" if self.is_pause else "actor.resumed"
        return AuditAppend(kind, self.pause.principal, msgspec.msgpack.encode({}))


class ReleaseStore(NamedTuple):
    """End the held state."""

    now_ms: int

    async def __call__(self, lane: Lane) -> None:
        """Carry it out; harmless when it has ended."""
        marks = await _call(lane, "release_store_1", None, self.now_ms, "held")
        assert marks <= 1, "a store is held once"


async def _link(
    lane: Lane, fence: Fence, actor: ActorId, append: AuditAppend, at_ms: int
) -> tuple[AuditHead, list[tuple[Any, ...]]]:
    """Return the head that one more record makes, and that record as a row."""
    plan = Plan({fence.shard: await lane.head(fence.shard, fence.epoch)})
    plan.add_audit(actor, append, epoch=fence.epoch, at_ms=at_ms)
    return plan.heads[fence.shard], plan.audit_rows()
