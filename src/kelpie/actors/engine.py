"""The actors of one process: calls, queries, deliveries, idempotency keys, and care of single keys.

A turn runs inline and to its end; its commit is queued before the next turn may start, so turns of
one actor reach the store in order. A reply leaves when the newest version that it read is durable.
A refused commit discards the activation: its later turns and waiting replies fall with it and fail
as retriable; the next call loads what is really stored. `turns` keeps these promises, `handlers`
runs what waits, `residents` decides who stays in memory.

Invariants: no call is without a deadline; a caller that goes away does not tear its turn; a call
along a chain never re-enters an actor of the chain with a command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from kelpie.actors.activation import Activation, Envelope, Phase
from kelpie.actors.commands import Message, encode_message, tag_of
from kelpie.actors.deadlines import Deadlines
from kelpie.actors.handlers import Handlers
from kelpie.actors.hosted import Hosted
from kelpie.actors.machine import Machine
from kelpie.actors.residents import Residents
from kelpie.actors.supervisor import Supervisor
from kelpie.actors.turns import NANOSECONDS_PER_MS, CommitListener, Ports, Turns
from kelpie.core import limits
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    ConflictError,
    CycleError,
    DrainingError,
    InvalidFieldError,
    KelpieError,
    KeyReusedError,
    NotFoundError,
    VersionConflictError,
)
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.meter import Meter
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store

__all__ = ["CommitListener", "Engine", "Inspection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One actor as this process has it.

    Attributes:
        phase: Where in its life the activation is; ``absent`` when it is not in memory.
        version: Turns that changed it; ``durable_version`` of them are on disk.
        mailbox: How many calls wait for their turn.
        handler: The method whose handler runs now, empty when none does.
        handler_ms: How long it has been running.
        paused: Whether commands wait until somebody resumes the actor.
        size_bytes: The encoded state's size.
    """

    actor: ActorId
    phase: Phase | str
    version: int
    durable_version: int
    incarnation: int
    mailbox: int
    handler: str
    handler_ms: int
    paused: bool
    size_bytes: int


class Engine:
    """The actors of one process."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        rng: Rng,
        telemetry: Telemetry,
        supervisor: Supervisor,
        meter: Meter | None = None,
        resident_max: int = limits.RESIDENT_ACTORS_MAX,
        resident_bytes_max: int = limits.RESIDENT_BYTES_MAX,
    ) -> None:
        self._store = store
        self._clock = clock
        self._supervisor = supervisor
        ports = Ports(
            store=store,
            clock=clock,
            rng=rng,
            telemetry=telemetry,
            supervisor=supervisor,
            meter=meter,
        )
        self._residents = Residents(count_max=resident_max, bytes_max=resident_bytes_max)
        self._turns = Turns(ports, self._residents)
        self._handlers = Handlers(self._turns, self)
        self._turns.begin_handler = self._handlers.begin
        self._keyed: dict[tuple[ActorId, str, str], Envelope] = {}
        self._deadlines = Deadlines()
        self._resume_listeners: list[Callable[[ActorId], None]] = []
        self._accepting = True
        self._gave_up = False
        self._streak = 0
        self._quota = self._share = self._left = self._budget = limits.TURNS_PER_TICK_MAX
        self._tick_ns = 0
        self._resting = 0

    # --- set-up and state -----------------------------------------------------------------------

    def register(self, machine: Machine[Any]) -> None:
        """Host actors of this machine's type; each type once."""
        types = self._turns.types
        assert machine.type_name not in types, f"{machine.type_name} registered twice"
        assert machine.schema_version >= 1, "schema versions count from one"
        types[machine.type_name] = Hosted(machine)

    def hosts(self, type_name: str) -> bool:
        """Whether a machine of this type is registered."""
        return type_name in self._turns.types

    def listen(self, listener: CommitListener) -> None:
        """Tell ``listener`` of every durable commit from now on."""
        assert listener not in self._turns.listeners, "a listener is told once"
        self._turns.listeners.append(listener)
        assert self._turns.listeners

    def listen_resumed(self, listener: Callable[[ActorId], None]) -> None:
        """Tell ``listener`` of every actor that is resumed from now on."""
        assert listener not in self._resume_listeners, "a listener is told once"
        self._resume_listeners.append(listener)
        assert self._resume_listeners

    @property
    def resident_count(self) -> int:
        """How many actors are in memory."""
        return len(self._residents)

    @property
    def resident_bytes(self) -> int:
        """How much memory they are counted with."""
        return self._residents.size_bytes

    def accepting(self) -> bool:
        """Whether new calls are taken."""
        return self._accepting

    def close_gate(self) -> None:
        """Refuse new calls from this moment."""
        self.check_invariants()
        self._accepting = False
        assert not self.accepting()

    async def drain(self, timeout_s: float = limits.DRAIN_TIMEOUT_MS / 1000) -> None:
        """Refuse new calls from this moment, and return when every turn that began is settled.

        Calls that still wait (for a paused actor) fail as retriable, and hooks run. Handlers that
        do not end within ``timeout_s`` are stopped; one that will not stop is left to the
        supervisor, and nothing that it comes to is kept.
        """
        self.close_gate()
        if not self._gave_up and not await self._settle(timeout_s):
            self._turns.retire()
            self._gave_up = not await self._settle(limits.STOP_TIMEOUT_MS / 1000)
        self._turns.retire()
        assert not self._accepting

    async def _settle(self, timeout_s: float) -> bool:
        """Return whether every turn was settled in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._turns.settled()
        except TimeoutError:
            return False
        return True

    # --- calls ----------------------------------------------------------------------------------

    async def call(
        self,
        actor: ActorId,
        message: Message,
        *,
        principal: str,
        key: str | None = None,
        timeout_ms: int = limits.INVOCATION_TIMEOUT_MS,
        internal: bool = False,
    ) -> Any:
        """Run one turn and return its reply once the turn is durable.

        With ``key`` the turn happens once: the same key and request give the same reply for
        ``IDEMPOTENCY_TTL_MS``. A caller that goes away does not tear the turn. ``internal`` calls
        (an effect's outcome) are still taken while the gate is closed to everyone else.

        Raises:
            KeyReusedError: The key came back with another request.
            DeadlineError: ``timeout_ms`` passed; the turn may still happen if it had begun.
            DrainingError: The node is shutting down.
            OverloadedError: The actor's mailbox is full.
            ActorFailedError: The turn raised; nothing of it was kept.
            StoreError: The commit was refused; nothing of it was kept unless the error says so.
            KelpieError: The machine refused the message.
        """
        if not self._accepting and not internal:
            raise DrainingError("the node is shutting down; try again")
        envelope = Envelope(
            actor=actor, message=message, principal=principal, timeout_ms=timeout_ms
        )
        if key is None:
            self._turns.dispatch(envelope)
        else:
            envelope = self._call_keyed(envelope, key)
        return await self.answer(envelope, timeout_ms)

    def begin(
        self, actor: ActorId, message: Message, *, principal: str, timeout_ms: int, is_query: bool
    ) -> Envelope:
        """Give an actor a call or a query without a key; on an idle actor the answer is there.

        The caller takes it when `may_go_on` lets it, or awaits `answer`. What `call` raises about
        the turn lies in the envelope.

        Raises:
            DrainingError: The node is shutting down, and this is no query.
        """
        if not self._accepting and not is_query:
            raise DrainingError("the node is shutting down; try again")
        envelope = Envelope(
            actor=actor,
            message=message,
            principal=principal,
            timeout_ms=timeout_ms,
            is_query=is_query,
        )
        self._turns.dispatch(envelope)
        return envelope

    async def query(
        self, actor: ActorId, query: Message, *, timeout_ms: int = limits.INVOCATION_TIMEOUT_MS
    ) -> Any:
        """Answer from the last finished turn's state, once that state is durable.

        Raises:
            DeadlineError: ``timeout_ms`` passed.
            KelpieError: The machine cannot answer, or the actor cannot be loaded.
        """
        envelope = Envelope(
            actor=actor, message=query, principal="", timeout_ms=timeout_ms, is_query=True
        )
        self._turns.dispatch(envelope)
        return await self.answer(envelope, timeout_ms)

    async def call_along(
        self,
        parent: Envelope,
        actor: ActorId,
        message: Message,
        *,
        key: str | None,
        timeout_ms: int,
    ) -> Any:
        """Run a command of ``actor`` for the handler of ``parent``, which waits.

        Raises:
            CycleError: ``actor`` waits in the chain, or the chain is too deep.
            KelpieError: As `call`.
        """
        envelope = self._link(parent, actor, message, timeout_ms)
        if actor in envelope.chain:
            path = " -> ".join(str(link) for link in (*envelope.chain, actor))
            message_text = f"{actor} waits for this very call ({path}); use send, or a query"
            raise CycleError(message_text, actor=str(actor))
        if key is None:
            self._turns.dispatch(envelope)
        else:
            envelope = self._call_keyed(envelope, key)
        return await self.answer(envelope, timeout_ms)

    async def query_along(
        self, parent: Envelope, actor: ActorId, message: Message, *, timeout_ms: int
    ) -> Any:
        """Ask ``actor`` for the handler of ``parent``, which waits; a query may re-enter.

        Raises:
            CycleError: The chain is too deep.
            KelpieError: As `query`.
        """
        envelope = self._link(parent, actor, message, timeout_ms)
        envelope.is_query = True
        self._turns.dispatch(envelope)
        return await self.answer(envelope, timeout_ms)

    def deliver(
        self,
        actor: ActorId,
        body: bytes,
        *,
        principal: str,
        message_id: int | None = None,
        fired: tuple[str, int] | None = None,
        is_call: bool = False,
    ) -> asyncio.Future[Any]:
        """Run one turn for a stored message or a fired reminder, which the turn consumes.

        With ``is_call`` the message is a submitted call, whose end is part of the turn's commit.

        Raises (when awaited): as `call`; `InvalidFieldError` when the body does not decode.
        """
        hosted = self._turns.types.get(actor.type)
        if hosted is None:
            return _failed(NotFoundError("actor type", actor.type))
        try:
            message = hosted.decoder.decode(body)
        except msgspec.MsgspecError as error:
            return _failed(InvalidFieldError("message", str(error)))
        envelope = Envelope(
            actor=actor,
            message=message,
            principal=principal,
            is_call=is_call,
            message_id=message_id,
            fired=fired,
        )
        self._turns.dispatch(envelope)
        return envelope.listen()

    def _link(
        self, parent: Envelope, actor: ActorId, message: Message, timeout_ms: int
    ) -> Envelope:
        chain = (*parent.chain, parent.actor)
        if len(chain) >= limits.CALL_DEPTH_MAX:
            problem = f"the chain of calls to {actor} is {len(chain)} actors deep; use send"
            raise CycleError(problem, actor=str(actor), limit=limits.CALL_DEPTH_MAX)
        return Envelope(
            actor=actor,
            message=message,
            principal=f"actor:{parent.actor}",
            timeout_ms=timeout_ms,
            chain=chain,
        )

    # --- answers --------------------------------------------------------------------------------

    def may_go_on(self, envelope: Envelope) -> bool:
        """Return whether the answer is there and its caller may have it within this tick."""
        if not envelope.is_answered or self._streak >= self._quota:
            return False
        self._streak += 1
        assert self._streak <= self._quota, "no more answers in a tick than it has"
        return True

    async def answer(self, envelope: Envelope, timeout_ms: int) -> Any:
        """Return the answer, which is often there: then no future, timer or clock is needed.

        Raises:
            DeadlineError: ``timeout_ms`` passed; the turn may still happen if it had begun.
            KelpieError: The turn failed.
        """
        if not envelope.is_answered:
            return await self._deadlines.wait(envelope.listen(), envelope.actor, timeout_ms)
        if not self.may_go_on(envelope):
            await self._rest_a_tick()
        return envelope.result()

    async def _rest_a_tick(self) -> None:
        """Let the loop go round: answers that are there at once would otherwise never yield.

        Callers of one tick share its budget: once it is spent, each that comes takes a step and
        rests; the next tick gives each that rested the same share. The budget grows while ticks
        are short, because a step through the loop costs as much as half a turn, and it shrinks to
        what a tick may always have when one was long.
        """
        self._left -= self._streak
        self._streak = 0
        self._quota = self._share if self._left >= self._share else limits.TURNS_PER_STEP_MIN
        self._resting += 1
        if self._resting == 1:
            asyncio.get_running_loop().call_soon(self._begin_tick)
        await asyncio.sleep(0)

    def _begin_tick(self) -> None:
        now_ns = self._clock.boot_ns()
        if now_ns - self._tick_ns > limits.TURNS_MS_PER_TICK_MAX * NANOSECONDS_PER_MS:
            self._budget = limits.TURNS_PER_TICK_MAX
        else:
            self._budget = min(2 * self._budget, limits.TURNS_PER_QUICK_TICK_MAX)
        self._tick_ns = now_ns
        self._left = self._budget
        share = self._budget // self._resting
        self._quota = self._share = max(limits.TURNS_PER_STEP_MIN, share)
        self._resting = 0

    # --- idempotency keys -----------------------------------------------------------------------

    def _call_keyed(self, envelope: Envelope, key: str) -> Envelope:
        """Begin the one turn of the key and return its envelope, or the one that is on its way."""
        if not 1 <= len(key.encode()) <= limits.IDEMPOTENCY_KEY_BYTES_MAX:
            bound = limits.IDEMPOTENCY_KEY_BYTES_MAX
            raise InvalidFieldError("Idempotency-Key", f"must be 1 to {bound} bytes")
        method = tag_of(envelope.message)
        request = digest_bytes(encode_message(envelope.message))
        scope = (envelope.actor, method, key)
        running = self._keyed.get(scope)
        if running is not None:
            if running.request != request:
                raise _key_reused(key, method)
            return running
        envelope.key = key
        envelope.request = request
        envelope.after = partial(self._keyed.pop, scope, None)
        self._keyed[scope] = envelope
        self._supervisor.start("actors.keyed", self._run_keyed(envelope, method))
        return envelope

    async def _run_keyed(self, envelope: Envelope, method: str) -> None:
        assert envelope.key is not None
        try:
            kept = await self._store.reply(envelope.actor, method, envelope.key)
        except KelpieError as error:
            envelope.fail(error)
            return
        if kept is None:
            self._turns.dispatch(envelope)
        elif kept.request != envelope.request:
            envelope.fail(_key_reused(envelope.key, method))
        else:
            reply_type = envelope.message.reply_type
            kind = Any if reply_type is None else reply_type
            try:
                envelope.succeed(msgspec.msgpack.decode(kept.reply, type=kind))
            except msgspec.ValidationError as error:
                problem = f"{method} was carried out, and returns another type now: {error}"
                envelope.fail(ConflictError(problem, key=envelope.key[:64]))

    # --- care of single keys --------------------------------------------------------------------

    def pause(self, actor: ActorId) -> None:
        """Let commands, messages and reminders of ``actor`` wait; queries are still answered.

        A pause lasts until `resume`; `Pauses` keeps it in the store. Harmless when paused before.

        Raises:
            NotFoundError: The actor's type is not hosted here.
        """
        hosted = self._hosted(actor)
        assert hosted.machine.type_name == actor.type, "a type has one machine"
        self._turns.paused.add(actor)
        activation = self._residents.get(actor)
        if activation is not None:
            activation.paused = True
        assert activation is None or not activation.open, "a paused actor takes no command"
        assert actor in self._turns.paused

    def resume(self, actor: ActorId) -> None:
        """Give the waiting calls of a paused actor their turns; harmless when not paused."""
        self._turns.paused.discard(actor)
        activation = self._residents.get(actor)
        if activation is not None and activation.paused:
            activation.paused = False
            self._turns.run_mailbox(activation)
        for listener in self._resume_listeners:
            listener(actor)
        assert activation is None or not activation.paused
        assert actor not in self._turns.paused

    def kill(self, actor: ActorId) -> bool:
        """Stop the actor's handler, fail what waits for it, and load it anew at the next call.

        What was durable stays, and what is on its way to the disk is answered as it comes out.
        Returns whether the actor was in memory.
        """
        activation = self._residents.get(actor)
        if activation is None or activation.phase == "gone":
            return False
        error = VersionConflictError(f"{actor} was killed; try again", actor=str(actor))
        queued, activation.mailbox = activation.mailbox, None
        for envelope in queued or ():
            envelope.fail(error)
        self._turns.renew(activation)
        assert not activation.open, "a killed actor takes no turn before it is loaded again"
        assert activation.mailbox is None
        return True

    def is_paused(self, actor: ActorId) -> bool:
        """Whether the actor's commands wait until somebody resumes it."""
        return actor in self._turns.paused

    def is_running(self, actor: ActorId, message_id: int) -> bool:
        """Whether the actor's handler runs for this stored message now."""
        activation = self._residents.get(actor)
        running = activation.running if activation is not None else None
        return running is not None and running.envelope.message_id == message_id

    def withdraw(self, actor: ActorId, message_id: int) -> bool:
        """Take a stored message out of the mailbox, where it waits for its turn to begin.

        Whoever delivered it is told to try again. Returns whether it was there.
        """
        activation = self._residents.get(actor)
        mailbox = activation.mailbox if activation is not None else None
        if mailbox is None:
            return False
        found = [envelope for envelope in mailbox if envelope.message_id == message_id]
        for envelope in found:
            mailbox.remove(envelope)
            text = f"message {message_id} to {actor} was withdrawn"
            envelope.fail(VersionConflictError(text, actor=str(actor)))
        assert all(envelope.message_id != message_id for envelope in mailbox)
        assert all(envelope.is_answered for envelope in found)
        return bool(found)

    def inspect(self, actor: ActorId) -> Inspection:
        """Return the actor as this process has it."""
        activation = self._residents.get(actor)
        if activation is None:
            activation = Activation(actor, self._hosted(actor))
            activation.paused = actor in self._turns.paused
            phase = "absent"
        else:
            phase = activation.phase
        running = activation.running
        held_ns = self._clock.boot_ns() - running.began_ns if running else 0
        return Inspection(
            actor=actor,
            phase=phase,
            version=activation.version,
            durable_version=activation.durable_version,
            incarnation=activation.incarnation,
            mailbox=len(activation.mailbox or ()),
            handler=tag_of(running.envelope.message) if running else "",
            handler_ms=held_ns // NANOSECONDS_PER_MS,
            paused=activation.paused,
            size_bytes=activation.size_bytes,
        )

    def _hosted(self, actor: ActorId) -> Hosted:
        hosted = self._turns.types.get(actor.type)
        if hosted is None:
            raise NotFoundError("actor type", actor.type)
        return hosted

    def check_invariants(self) -> None:
        """Assert what holds between turns, over every resident actor."""
        self._turns.check_invariants()
        for envelope in self._keyed.values():
            assert envelope.request, "a key comes with its request's digest"
            assert not envelope.is_answered, "an answered call is no call on its way"


def _failed(error: KelpieError) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _key_reused(key: str, method: str) -> KeyReusedError:
    return KeyReusedError(
        f"Idempotency-Key {key[:64]!r} was used for another {method} request; choose a new key",
        key=key[:64],
    )
