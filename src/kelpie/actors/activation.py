"""A resident actor and the calls that wait for it: slotted records without tasks or locks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Literal, NamedTuple

from kelpie.actors.commands import Message
from kelpie.actors.machine import Machine
from kelpie.core.digests import Digest
from kelpie.core.errors import KelpieError
from kelpie.core.ids import ActorId

Phase = Literal["loading", "ready", "leaving", "gone"]


class Envelope:
    """One message on its way into a turn, and who waits for the answer.

    ``message_id`` is set when the message came through the outbox, ``fired`` when a reminder
    caused it, ``key`` when the caller gave an idempotency key; a query changes nothing.
    """

    __slots__ = (
        "actor",
        "fired",
        "future",
        "is_query",
        "key",
        "message",
        "message_id",
        "principal",
        "request",
    )

    def __init__(
        self,
        *,
        actor: ActorId,
        message: Message,
        principal: str,
        future: asyncio.Future[Any],
        is_query: bool = False,
        message_id: int | None = None,
        fired: tuple[str, int] | None = None,
        key: str | None = None,
        request: Digest | None = None,
    ) -> None:
        self.actor = actor
        self.message = message
        self.principal = principal
        self.future = future
        self.is_query = is_query
        self.message_id = message_id
        self.fired = fired
        self.key = key
        self.request = request

    def succeed(self, value: Any) -> None:
        """Answer the caller, unless it stopped waiting."""
        if not self.future.done():
            self.future.set_result(value)

    def fail(self, error: KelpieError) -> None:
        """Fail the caller, unless it stopped waiting."""
        if not self.future.done():
            self.future.set_exception(error)


class Waiter(NamedTuple):
    """An answer that leaves when ``version`` is durable."""

    version: int
    envelope: Envelope
    value: Any


class Activation:
    """One resident actor.

    ``state`` is the state after the last finished turn, ``version`` its version, and
    ``durable_version`` the newest version known to be on disk: ``durable_version <= version``.
    """

    __slots__ = (
        "actor",
        "durable_version",
        "incarnation",
        "machine",
        "mailbox",
        "phase",
        "state",
        "version",
        "waiters",
    )

    def __init__(self, actor: ActorId, machine: Machine[Any]) -> None:
        self.actor = actor
        self.machine = machine
        self.phase: Phase = "loading"
        self.state: Any = None
        self.version = 0
        self.durable_version = 0
        self.incarnation = 1
        self.mailbox: deque[Envelope] | None = None
        self.waiters: deque[Waiter] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, running or on its way to disk."""
        return (
            self.phase == "ready"
            and not self.mailbox
            and not self.waiters
            and self.durable_version == self.version
        )

    def check_invariants(self) -> None:
        """Assert what holds between turns."""
        assert self.durable_version <= self.version, "durable ahead of memory"
        assert self.incarnation >= 1, "incarnations count from one"
        assert self.phase == "ready" or self.phase != "gone" or not self.mailbox
