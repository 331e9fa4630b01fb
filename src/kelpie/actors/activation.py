"""A resident actor and the calls that wait for it: slotted records without tasks or locks."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Literal, NamedTuple

from kelpie.actors.commands import Message
from kelpie.actors.hosted import Hosted
from kelpie.core.digests import Digest
from kelpie.core.errors import KelpieError
from kelpie.core.ids import ActorId

Phase = Literal["loading", "ready", "settling", "leaving", "gone"]
"""``settling``: to be loaded again once what it wrote is durable; ``leaving``: being deleted."""


class Envelope:
    """One message on its way into a turn, and who waits for the answer.

    ``message_id`` is set when the message came through the outbox, ``fired`` when a reminder
    caused it, ``key`` when the caller gave an idempotency key; a query changes nothing. ``chain``
    are the actors that wait for this call, outermost first. ``is_call`` says that the message is a
    submitted call, whose end the turn's commit writes. ``deadline_ns`` is boot time, 0 for a
    message that has all the time in the world until its turn begins.
    """

    __slots__ = (
        "actor",
        "chain",
        "deadline_ns",
        "fired",
        "future",
        "is_call",
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
        is_call: bool = False,
        message_id: int | None = None,
        fired: tuple[str, int] | None = None,
        chain: tuple[ActorId, ...] = (),
        deadline_ns: int = 0,
    ) -> None:
        self.actor = actor
        self.message = message
        self.principal = principal
        self.future = future
        self.is_query = is_query
        self.is_call = is_call
        self.message_id = message_id
        self.fired = fired
        self.key: str | None = None
        self.request: Digest | None = None
        self.chain = chain
        self.deadline_ns = deadline_ns

    @property
    def is_causeless(self) -> bool:
        """Whether nothing stored waits for this turn's commit."""
        return self.message_id is None and self.fired is None and self.key is None

    def request_id(self) -> str:
        """Return the request's name across attempts; empty when there is but one."""
        if self.key is not None:
            return f"key:{type(self.message).__struct_config__.tag}:{self.key}"
        if self.message_id is not None:
            return f"message:{self.message_id}"
        if self.fired is not None:
            return f"reminder:{self.fired[0]}:{self.fired[1]}"
        return ""

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


class Running:
    """The async handler that has the actor, and since when (boot time)."""

    __slots__ = ("began_ns", "envelope", "task")

    def __init__(self, envelope: Envelope, began_ns: int) -> None:
        self.envelope = envelope
        self.began_ns = began_ns
        self.task: asyncio.Task[None] | None = None


class Activation:
    """One resident actor.

    ``state`` is the state after the last finished turn, ``version`` its version, and
    ``durable_version`` the newest version known to be on disk: ``durable_version <= version``.
    ``running`` is the async handler in progress, ``paused`` a person's wish, and ``blocked`` says
    that the next handler waits for a free slot of its type. ``touched`` spares it from the next
    sweep of the memory.
    """

    __slots__ = (
        "actor",
        "blocked",
        "durable_version",
        "hosted",
        "incarnation",
        "mailbox",
        "paused",
        "phase",
        "running",
        "size_bytes",
        "state",
        "touched",
        "version",
        "waiters",
    )

    def __init__(self, actor: ActorId, hosted: Hosted) -> None:
        self.actor = actor
        self.hosted = hosted
        self.phase: Phase = "loading"
        self.state: Any = None
        self.version = 0
        self.durable_version = 0
        self.incarnation = 1
        self.size_bytes = 0
        self.paused = False
        self.blocked = False
        self.touched = False
        self.running: Running | None = None
        self.mailbox: deque[Envelope] | None = None
        self.waiters: deque[Waiter] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is queued, running or on its way to disk."""
        return (
            self.phase == "ready"
            and not self.mailbox
            and not self.waiters
            and self.running is None
            and self.durable_version == self.version
        )

    @property
    def open(self) -> bool:
        """Whether a command may have its turn now."""
        return (
            self.phase == "ready" and self.running is None and not self.paused and not self.blocked
        )

    def check_invariants(self) -> None:
        """Assert what holds between turns."""
        assert self.durable_version <= self.version, "durable ahead of memory"
        assert self.incarnation >= 1, "incarnations count from one"
        assert self.phase == "ready" or self.phase != "gone" or not self.mailbox
        assert self.size_bytes >= 0
