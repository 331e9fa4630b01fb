"""A resident actor and the calls that wait for it: slotted records without tasks or locks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from kelpie.actors.commands import Message, tag_of
from kelpie.actors.hosted import Hosted
from kelpie.core.digests import Digest
from kelpie.core.errors import KelpieError
from kelpie.core.ids import ActorId

Phase = Literal["loading", "ready", "settling", "departing", "stopped", "leaving", "gone"]
"""``settling``: to be loaded again once what it wrote is durable; ``departing``: to go then, with
its shard; ``stopped``: the same, whatever its handler does; ``leaving``: being deleted."""


class Envelope(msgspec.Struct, kw_only=True, eq=False):
    """One message on its way into a turn, its answer, and who waits for it.

    ``message_id`` is set when the message came through the outbox, ``fired`` when a reminder
    caused it, ``key`` when the caller gave an idempotency key; a query changes nothing. ``chain``
    are the actors that wait for this call, outermost first. ``is_call`` says that the message is a
    submitted call, whose end the turn's commit writes. ``timeout_ms`` is what the caller
    gives it, 0 for a message that has all the time in the world until its turn begins;
    ``deadline_ns`` is the same in boot time, set when the message has to wait.

    A struct, and without a future until somebody has to wait: on an idle actor the answer is there
    before its caller looks. ``after`` runs once, when the answer is there.
    """

    actor: ActorId
    message: Message
    principal: str
    timeout_ms: int = 0
    deadline_ns: int = 0
    is_query: bool = False
    is_call: bool = False
    message_id: int | None = None
    fired: tuple[str, int] | None = None
    key: str | None = None
    request: Digest | None = None
    chain: tuple[ActorId, ...] = ()
    is_answered: bool = False
    value: Any = None
    error: KelpieError | None = None
    waiting: list[asyncio.Future[Any]] | None = None
    after: Callable[[], object] | None = None

    def request_id(self) -> str:
        """Return the request's name across attempts; empty when there is but one."""
        if self.key is None and self.message_id is None and self.fired is None:
            return ""
        if self.key is not None:
            return f"key:{tag_of(self.message)}:{self.key}"
        if self.message_id is not None:
            return f"message:{self.message_id}"
        assert self.fired is not None
        return f"reminder:{self.fired[0]}:{self.fired[1]}"

    def succeed(self, value: Any) -> None:
        """Answer the callers, unless they have been answered."""
        if not self.is_answered:
            self.is_answered = True
            self.value = value
            if self.waiting is not None or self.after is not None:
                self._tell()

    def fail(self, error: KelpieError) -> None:
        """Fail the callers, unless they have been answered."""
        if not self.is_answered:
            self.is_answered = True
            self.error = error
            if self.waiting is not None or self.after is not None:
                self._tell()

    def result(self) -> Any:
        """Return the answer that is there.

        Raises:
            KelpieError: The turn failed.
        """
        assert self.is_answered, "there is no answer yet"
        if self.error is not None:
            raise self.error
        return self.value

    def listen(self) -> asyncio.Future[Any]:
        """Return a future of the answer that is one caller's own: cancelling it tears nothing."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.is_answered:
            self._pass_on(future)
        elif self.waiting is None:
            self.waiting = [future]
        else:
            self.waiting.append(future)
        assert self.is_answered == future.done(), "an answer that is there is not waited for"
        return future

    def _tell(self) -> None:
        assert self.is_answered, "nobody is told of an answer that is not there"
        waiting, self.waiting = self.waiting, None
        for future in waiting or ():
            self._pass_on(future)
        after, self.after = self.after, None
        if after is not None:
            after()
        assert self.waiting is None, "whoever comes after the answer does not wait"

    def _pass_on(self, future: asyncio.Future[Any]) -> None:
        assert self.is_answered, "there is no answer yet"
        if future.done():
            return
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(self.value)


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
    that the next handler waits for a free slot of its type. ``query_count`` async queries run.
    ``touched`` spares it from the next sweep of the memory. ``epoch`` is its shard's: under that it
    was loaded, and under that it commits.
    """

    __slots__ = (
        "actor",
        "blocked",
        "durable_version",
        "epoch",
        "hosted",
        "incarnation",
        "mailbox",
        "paused",
        "phase",
        "query_count",
        "running",
        "shard",
        "size_bytes",
        "state",
        "touched",
        "version",
        "waiters",
    )

    def __init__(self, actor: ActorId, hosted: Hosted) -> None:
        self.actor = actor
        self.shard = actor.shard  # hashed once, and needed by every commit
        self.epoch = 0
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
        self.query_count = 0
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
            and self.query_count == 0
            and self.durable_version == self.version
        )

    @property
    def open(self) -> bool:
        """Whether a command may have its turn now."""
        return (
            self.phase == "ready" and self.running is None and not self.paused and not self.blocked
        )

    @property
    def may_end(self) -> bool:
        """Whether what its handler comes to still counts."""
        return self.phase in {"ready", "departing"}

    def check_invariants(self) -> None:
        """Assert what holds between turns."""
        assert self.durable_version <= self.version, "durable ahead of memory"
        assert self.incarnation >= 1, "incarnations count from one"
        assert self.phase == "ready" or self.phase != "gone" or not self.mailbox
        assert self.size_bytes >= 0
        assert self.query_count >= 0, "more queries ended than began"
