"""Submitted calls: kept first, run by the outbox, asked about later.

A submission is a message of its caller in the outbox and a row that keeps how it ends; delivery is
the pump's and exactly once, and the turn's own commit writes the result. Nothing here runs a turn.

Invariants: a call that `submit` returned is durable; one that was cancelled never began; what is
said of a call's state is what the store has of it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from kelpie.actors.callers import CallStatus, caller_id
from kelpie.actors.commands import Message, encode_message, tag_of
from kelpie.actors.engine import Engine
from kelpie.actors.hub import Watch
from kelpie.actors.outbox import OutboxPump
from kelpie.actors.pump import PumpDeps
from kelpie.core import limits
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    CallBegunError,
    DrainingError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
)
from kelpie.core.ids import ActorId, Tenant, derive_uuid
from kelpie.ports.rng import Rng
from kelpie.storage.records import CallEnd, Commit, CommitReceipt, Page, StoredCall, Submission

LOOK_S: Final = 1.0  # a hint may be lost, and a server that drains must not wait for its callers


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedCall:
    """A submitted call as it is now."""

    stored: StoredCall
    status: CallStatus

    @property
    def is_over(self) -> bool:
        """Whether it ended."""
        return self.stored.state != "pending"


class Submissions:
    """The submitted calls of one process's store."""

    def __init__(self, deps: PumpDeps, pump: OutboxPump, *, rng: Rng) -> None:
        self._store = deps.store
        self._engine: Engine = deps.runtime
        self._clock = deps.clock
        self._supervisor = deps.supervisor
        self._pump = pump
        self._rng = rng
        self._ownership = deps.runtime.ownership
        self._watches: dict[int, set[Watch]] = {}
        self._cancelling = asyncio.Lock()
        deps.runtime.listen(self._on_commit)
        pump.listen(self._wake)

    # --- submitting -----------------------------------------------------------------------------

    async def submit(
        self, actor: ActorId, message: Message, *, principal: str, key: str | None = None
    ) -> SubmittedCall:
        """Keep a call for its actor, and return it once it is durable; it runs by itself.

        Under a ``key`` the same request gives the same call, for as long as that is kept.

        Raises:
            KeyReusedError: The key came before with another request to this method of the actor.
            OverloadedError: The tenant has too many calls that have not ended.
            LimitExceededError: The arguments are larger than a message may be.
            InvalidFieldError: The key is no key, or an argument cannot be kept.
            DrainingError: The node is shutting down.
            NotOwnerError: The actor's shard is not served here; nothing was kept.
            StoreError: Nothing was kept, unless the error says that nobody knows.
        """
        if not self._engine.accepting():
            raise DrainingError("the node is shutting down; try again")
        _require_key(key)
        body = encode_message(message)
        if len(body) > limits.MESSAGE_BYTES_MAX:
            limit = limits.MESSAGE_BYTES_MAX
            raise LimitExceededError("arguments", actual=len(body), limit=limit, unit="bytes")
        submission = Submission(
            call_id=f"call-{derive_uuid(self._rng.bytes(16), 0)}",
            actor=actor,
            method=tag_of(message),
            sender=caller_id(actor.tenant, principal),
            principal=principal,
            key=key or "",
            request=digest_bytes(body),
            body=body,
            now_ms=self._clock.now_ms(),
        )
        stored = await self._store.submit_call(submission, epoch=self._ownership.epoch(actor.shard))
        self._pump.wake()
        return self._view(stored)

    # --- looking --------------------------------------------------------------------------------

    async def show(self, tenant: Tenant, call_id: str) -> SubmittedCall:
        """Return one call of the tenant.

        Raises:
            NotFoundError: There is none, or it ended longer ago than ends are kept.
        """
        stored = await self._store.call(tenant, call_id[: limits.ACTOR_ID_BYTES_MAX])
        if stored is None:
            raise NotFoundError("call", call_id[: limits.ACTOR_ID_BYTES_MAX])
        return self._view(stored)

    async def wait(self, tenant: Tenant, call_id: str, wait_s: float) -> SubmittedCall:
        """Return the call once it has ended, or as it is after ``wait_s`` or when the node drains.

        Raises:
            NotFoundError: As `show`.
            InvalidFieldError: ``wait_s`` is negative or too long.
        """
        bound_s = limits.CALL_WAIT_MS_MAX / 1000
        if not 0 <= wait_s <= bound_s:
            raise InvalidFieldError("wait_s", f"must be 0 to {bound_s:g} seconds")
        until_ns = self._clock.boot_ns() + int(wait_s * 1e9)
        watch = Watch()
        call = await self.show(tenant, call_id)
        while not call.is_over and self._engine.accepting():
            left_s = (until_ns - self._clock.boot_ns()) / 1e9
            if left_s <= 0:
                break
            call = await self._await_news(call, watch, min(left_s, LOOK_S))
        return call

    async def _await_news(self, call: SubmittedCall, watch: Watch, wait_s: float) -> SubmittedCall:
        """Return the call as it is once something may have become of it, or after ``wait_s``."""
        message_id, tenant = call.stored.message_id, call.stored.actor.tenant
        group = self._watches.setdefault(message_id, set())
        group.add(watch)
        try:
            # Looked at before the wait too: the end may have come before the watch.
            call = await self.show(tenant, call.stored.call_id)
            if not call.is_over:
                await watch.wait(wait_s)
                call = await self.show(tenant, call.stored.call_id)
        finally:
            group.discard(watch)
            if not group and self._watches.get(message_id) is group:
                del self._watches[message_id]
        return call

    async def find(
        self, page: Page, *, status: CallStatus | None = None, actor: ActorId | None = None
    ) -> list[SubmittedCall]:
        """Return calls by their submission, oldest first; without their results.

        What runs is listed as ``pending`` too, because that is what the store has of it.

        Raises:
            NotFoundError: A cursor names no call of the tenant.
        """
        if status == "running":
            raise InvalidFieldError("state", "a call that runs is listed as pending")
        rows = await self._store.calls(page, state=status, actor=actor)
        return [self._view(row) for row in rows]

    def _view(self, stored: StoredCall) -> SubmittedCall:
        status: CallStatus = stored.state
        if status == "pending" and self._engine.is_running(stored.actor, stored.message_id):
            status = "running"
        return SubmittedCall(stored=stored, status=status)

    # --- cancelling -----------------------------------------------------------------------------

    async def cancel(self, tenant: Tenant, call_id: str) -> SubmittedCall:
        """Take a call back that has not begun: it never runs. Harmless when it was before.

        Raises:
            CallBegunError: It runs, or has ended; the error says which.
            NotFoundError: As `show`.
            NotOwnerError: The actor's shard is not served here; the call is as it was.
            StoreError: The call is as it was.
        """
        work = self._cancel(tenant, call_id)
        call = await self._supervisor.finish("actors.calls.cancel", work)
        if call.status != "cancelled":
            raise CallBegunError(call_id, call.status)
        return call

    async def _cancel(self, tenant: Tenant, call_id: str) -> SubmittedCall:
        async with self._cancelling:
            call = await self.show(tenant, call_id)
            self._ownership.epoch(call.stored.actor.shard)  # its owner alone knows that it waits
            if call.status == "pending":
                await self._take_back(call.stored)
                call = await self.show(tenant, call_id)
        return call

    async def _take_back(self, stored: StoredCall) -> None:
        """End a pending call, after making sure that its turn cannot begin meanwhile."""
        lane = (caller_id(stored.actor.tenant, stored.principal), stored.actor)
        now_ms = self._clock.now_ms()
        end = CallEnd("cancelled", b"", now_ms, now_ms + limits.CALL_TTL_MS)
        self._pump.withhold(stored.message_id)
        is_gone = False
        try:
            self._engine.withdraw(stored.actor, stored.message_id)
            is_gone = await self._store.end_call(stored.message_id, end)
        finally:
            self._pump.release(stored.message_id, lane, is_gone=is_gone)
        if is_gone:
            self._wake(stored.message_id)

    # --- news -----------------------------------------------------------------------------------

    def _on_commit(self, commit: Commit, _: CommitReceipt) -> None:
        if commit.call is not None and commit.consumes is not None:
            self._wake(commit.consumes)

    def _wake(self, message_id: int) -> None:
        for watch in self._watches.get(message_id, ()):
            watch.wake()


def _require_key(key: str | None) -> None:
    if key is not None and not 1 <= len(key.encode()) <= limits.IDEMPOTENCY_KEY_BYTES_MAX:
        bound = limits.IDEMPOTENCY_KEY_BYTES_MAX
        raise InvalidFieldError("Idempotency-Key", f"must be 1 to {bound} bytes")
