"""Async handlers: turns that wait, each in a supervised task, so that no caller can tear them.

While a command's handler runs, its actor is busy: later commands queue, queries read the last
finished state. What the handler came to is then decided in one synchronous turn.

Invariants: at most one command handler per actor; no handler outlives its deadline; a handler that
fails, is stopped or is late leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from kelpie.actors.activation import Activation, Envelope, Running
from kelpie.actors.blocking import NANOSECONDS_PER_MS
from kelpie.actors.commands import Message
from kelpie.actors.machine import Turn
from kelpie.actors.stepping import Driven
from kelpie.actors.turns import Turns
from kelpie.core import limits
from kelpie.core.errors import (
    DeadlineError,
    DrainingError,
    KelpieError,
    VersionConflictError,
)
from kelpie.core.ids import ActorId


class ChainCalls(Protocol):
    """How a handler reaches other actors."""

    async def call_along(
        self,
        parent: Envelope,
        actor: ActorId,
        message: Message,
        *,
        key: str | None,
        timeout_ms: int,
    ) -> Any:
        """Run a command of ``actor`` below ``parent``."""
        ...

    async def query_along(
        self, parent: Envelope, actor: ActorId, message: Message, *, timeout_ms: int
    ) -> Any:
        """Ask ``actor`` below ``parent``."""
        ...


class HandlerScope:
    """What one running handler may reach. Implements `Scope`."""

    __slots__ = ("_activation", "_calls", "_deadline_ns", "_envelope", "_turn", "_turns")

    def __init__(
        self,
        turns: Turns,
        calls: ChainCalls,
        activation: Activation,
        envelope: Envelope,
        deadline_ns: int,
    ) -> None:
        self._turns = turns
        self._calls = calls
        self._activation = activation
        self._envelope = envelope
        self._deadline_ns = deadline_ns
        self._turn = turns.new_turn(envelope)

    @property
    def turn(self) -> Turn:
        """The turn this handler is part of."""
        return self._turn

    def remaining_ms(self) -> int:
        """Return how long the handler may still run; never negative."""
        left_ns = self._deadline_ns - self._turns.ports.clock.boot_ns()
        return max(0, left_ns // NANOSECONDS_PER_MS)

    async def call(self, actor: ActorId, message: Message, *, key: str | None) -> Any:
        """Run a command of another actor along this chain.

        Raises:
            CycleError: The actor waits further up the chain, or the chain is too deep.
            DeadlineError: The chain's deadline passed.
            KelpieError: What the callee raised.
        """
        self._require_actor()
        timeout_ms = max(1, self.remaining_ms())
        return await self._calls.call_along(
            self._envelope, actor, message, key=key, timeout_ms=timeout_ms
        )

    async def query(self, actor: ActorId, message: Message) -> Any:
        """Ask another actor, or one further up the chain, along this chain.

        Raises:
            CycleError: The chain is too deep.
            DeadlineError: The chain's deadline passed.
        """
        self._require_actor()
        timeout_ms = max(1, self.remaining_ms())
        return await self._calls.query_along(self._envelope, actor, message, timeout_ms=timeout_ms)

    def _require_actor(self) -> None:
        """Let nothing leave a handler that was stopped, whatever it does with its cancellation.

        Raises:
            NotOwnerError: The actor's shard went.
        """
        if not self._activation.may_end:
            raise self._turns.ports.ownership.refusal(self._activation.shard)

    async def kv_get(self, key: str) -> bytes | None:
        """Return a value of this actor's ordered map, once its earlier turns are durable."""
        await self._until_durable()
        return await self._turns.ports.store.kv_get(self._activation.actor, key)

    async def kv_range(
        self, start: str, end: str, *, limit: int, descending: bool
    ) -> list[tuple[str, bytes]]:
        """Return pairs of this actor's ordered map, once its earlier turns are durable."""
        await self._until_durable()
        return await self._turns.ports.store.kv_range(
            self._activation.actor, start, end, limit=limit, descending=descending
        )

    async def _until_durable(self) -> None:
        reader = Envelope(
            actor=self._activation.actor, message=self._envelope.message, principal=""
        )
        self._turns.output.answer(self._activation, reader, None, read_ns=0)
        if not reader.is_answered:
            await reader.listen()
        reader.result()


class _Work:
    """One handler on its way, and what it came to."""

    __slots__ = ("activation", "envelope", "failure", "is_bug", "is_done", "scope", "value")

    def __init__(self, activation: Activation, envelope: Envelope, scope: HandlerScope) -> None:
        self.activation = activation
        self.envelope = envelope
        self.scope = scope
        self.value: Any = None
        self.failure: KelpieError | None = None
        self.is_bug = False
        self.is_done = False


def takes_slot(envelope: Envelope) -> bool:
    """Whether a command's handler counts among its type's.

    One below a handler of its own type does not: that one holds a slot and waits for this one.
    """
    return all(link.type != envelope.actor.type for link in envelope.chain)


class Handlers:
    """Runs the async handlers of one process."""

    def __init__(self, turns: Turns, calls: ChainCalls) -> None:
        self._turns = turns
        self._calls = calls
        self._clock = turns.ports.clock
        self._running_count = 0

    @property
    def running_count(self) -> int:
        """How many handlers run now, queries included."""
        return self._running_count

    def begin(self, activation: Activation, envelope: Envelope) -> None:
        """Start the envelope's handler, or hold it until its type has a free slot."""
        hosted = activation.hosted
        extras = hosted.extras
        assert extras is not None, "only machines with extras have async handlers"
        now_ns = self._clock.boot_ns()
        if envelope.is_query:
            activation.query_count += 1
        else:
            assert activation.running is None, "two handlers of one actor"
            if takes_slot(envelope):
                if hosted.is_full:
                    self._hold(activation, envelope)
                    return
                hosted.enter()
            activation.running = Running(envelope, now_ns)
        longest_ms = envelope.timeout_ms or limits.INVOCATION_TIMEOUT_MS
        deadline_ns = envelope.deadline_ns or now_ns + longest_ms * NANOSECONDS_PER_MS
        scope = HandlerScope(self._turns, self._calls, activation, envelope, deadline_ns)
        work = _Work(activation, envelope, scope)
        self._turns.work.begin()
        self._running_count += 1
        coroutine = extras.begin(activation.state, envelope.message, scope)
        task = self._turns.ports.supervisor.spawn(
            f"actors.handler:{activation.actor}", self._conduct(work, coroutine, deadline_ns)
        )
        if task is None:
            coroutine.close()
            self._finish(work)
            return
        if activation.running is not None and not envelope.is_query:
            activation.running.task = task
        task.add_done_callback(lambda _: self._end(work, coroutine))

    def _hold(self, activation: Activation, envelope: Envelope) -> None:
        if activation.mailbox is None:
            activation.mailbox = deque()
        activation.mailbox.appendleft(envelope)
        activation.blocked = True
        activation.hosted.waiting.append(activation)

    async def _conduct(
        self, work: _Work, coroutine: Coroutine[Any, Any, Any], deadline_ns: int
    ) -> None:
        try:
            work.value = await self._contain(work, coroutine, deadline_ns)
        except KelpieError as error:
            work.failure = error
        work.is_done = True

    async def _contain(
        self, work: _Work, coroutine: Coroutine[Any, Any, Any], deadline_ns: int
    ) -> Any:
        """Return what the handler returns.

        Raises:
            ActorFailedError: It has a bug, which is this actor's failure alone.
            DeadlineError: It did not end in time.
            KelpieError: What it raised on purpose.
        """
        activation = work.activation
        limit = asyncio.timeout(max(0.0, (deadline_ns - self._clock.boot_ns()) / 1e9))
        try:
            async with limit:
                return await Driven(coroutine, step=partial(self._take_step, work))
        except (KelpieError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._is_stopped(activation):
                raise
            if limit.expired() and isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"{activation.actor} did not finish before its deadline; nothing was changed",
                    actor=str(activation.actor),
                ) from None
            work.is_bug = True
            raise self._turns.failures.fail(activation, error) from error

    def _take_step(self, work: _Work, send: Callable[[Any], Any], value: Any) -> Any:
        """Take one step of a handler, and name it when it holds the loop too long."""
        began_ns = self._turns.blocking.begin()
        try:
            return send(value)
        finally:
            self._turns.blocking.end(began_ns, work.activation.actor, work.envelope.message)

    def _end(self, work: _Work, coroutine: Coroutine[Any, Any, Any]) -> None:
        coroutine.close()  # a task that was cancelled before its first step never awaited it
        self._finish(work)

    def _finish(self, work: _Work) -> None:
        """Free the actor's slot, decide what its handler came to, and go on with the mailbox."""
        activation, envelope = work.activation, work.envelope
        if envelope.is_query:
            activation.query_count -= 1
        else:
            activation.running = None
            if takes_slot(envelope):
                activation.hosted.leave()
        self._running_count -= 1
        self._settle_work(work)
        self._turns.work.end()
        if not envelope.is_query:
            self._admit(activation)
            if activation.phase == "gone":
                self._turns.deactivate(activation)
            else:
                self._turns.free(activation)

    def _settle_work(self, work: _Work) -> None:
        activation, envelope = work.activation, work.envelope
        if work.failure is not None:
            self._turns.output.refuse(activation, envelope, work.failure)
            if work.is_bug and not envelope.is_query:
                self._turns.departures.renew(activation)
        elif not work.is_done or not activation.may_end:
            envelope.fail(self._stopped(activation))
        elif envelope.is_query:
            read_ns = self._clock.boot_ns()
            self._turns.output.answer(activation, envelope, work.value, read_ns=read_ns)
        else:
            self._turns.decide(activation, envelope, work.value, work.scope.turn)

    def _is_stopped(self, activation: Activation) -> bool:
        """Whether the runtime stopped the handlers; else a cancellation is the handler's own."""
        return not activation.may_end or self._turns.ports.supervisor.closed

    def _stopped(self, activation: Activation) -> KelpieError:
        if self._turns.ports.supervisor.closed:
            return DrainingError("the node is shutting down; try again")
        if not self._turns.ports.ownership.serves(activation.shard):
            return self._turns.ports.ownership.refusal(activation.shard)
        message = f"{activation.actor} was stopped in the middle of this call; try again"
        return VersionConflictError(message, actor=str(activation.actor))

    def _admit(self, activation: Activation) -> None:
        """Let actors in that waited for a slot of this type, first come first."""
        hosted = activation.hosted
        while hosted.waiting and hosted.running_count < hosted.concurrency_max:
            waiting = hosted.waiting.popleft()
            waiting.blocked = False
            if waiting.phase != "ready" or not waiting.mailbox:
                continue
            held = list(hosted.waiting)
            hosted.waiting.clear()  # whoever is admitted is not behind those who wait
            self._turns.run_mailbox(waiting)
            hosted.waiting.extendleft(reversed(held))
