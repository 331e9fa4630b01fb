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
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from kelpie.actors.activation import Envelope
from kelpie.actors.calls import Calls
from kelpie.actors.care import KeyCare
from kelpie.actors.commands import Message
from kelpie.actors.deadlines import Deadlines
from kelpie.actors.handlers import Handlers
from kelpie.actors.hosted import Hosted
from kelpie.actors.inspection import Inspection
from kelpie.actors.keyed import KeyedCalls
from kelpie.actors.machine import Machine
from kelpie.actors.output import CommitListener
from kelpie.actors.ownership import Ownership
from kelpie.actors.residents import Residents
from kelpie.actors.supervisor import Supervisor
from kelpie.actors.ticks import TickBudget
from kelpie.actors.turns import Ports, Turns
from kelpie.core import limits
from kelpie.core.errors import (
    CycleError,
    DrainingError,
    InvalidFieldError,
    KelpieError,
    NotFoundError,
)
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.meter import Meter
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store

__all__ = ["CommitListener", "Engine", "Inspection"]


class Engine(KeyCare):
    """The actors of one process.

    Attributes:
        ownership: Which shards are served here.
        elsewhere: Where handlers' calls to actors of other nodes go; None where there are none.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        rng: Rng,
        telemetry: Telemetry,
        supervisor: Supervisor,
        ownership: Ownership,
        meter: Meter | None = None,
        resident_max: int = limits.RESIDENT_ACTORS_MAX,
        resident_bytes_max: int = limits.RESIDENT_BYTES_MAX,
    ) -> None:
        self.ownership = ownership
        ports = Ports(
            store=store,
            clock=clock,
            rng=rng,
            telemetry=telemetry,
            supervisor=supervisor,
            ownership=ownership,
            meter=meter,
        )
        residents = Residents(count_max=resident_max, bytes_max=resident_bytes_max)
        super().__init__(Turns(ports, residents))
        self._handlers = Handlers(self._turns, self)
        self._turns.begin_handler = self._handlers.begin
        self._keyed = KeyedCalls(self._turns)
        self._deadlines = Deadlines()
        self._ticks = TickBudget(clock)
        self.may_go_on: Callable[[Envelope], bool] = self._ticks.may_go_on
        self.elsewhere: Calls | None = None
        self._accepting = True
        self._gave_up = False

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

    def read_message(self, type_name: str, body: bytes) -> Message:
        """Return the message or query that another node encoded for an actor of this type.

        Raises:
            NotFoundError: The type is not hosted here.
            InvalidFieldError: The body does not decode.
        """
        hosted = self._turns.types.get(type_name)
        if hosted is None:
            raise NotFoundError("actor type", type_name)
        try:
            message: Message = hosted.decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidFieldError("message", str(error)) from error
        return message

    def listen(self, listener: CommitListener) -> None:
        """Tell ``listener`` of every durable commit from now on."""
        assert listener not in self._turns.output.listeners, "a listener is told once"
        self._turns.output.listeners.append(listener)
        assert self._turns.output.listeners

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
            self._turns.departures.retire()
            self._gave_up = not await self._settle(limits.STOP_TIMEOUT_MS / 1000)
        self._turns.departures.retire()
        assert not self._accepting

    async def _settle(self, timeout_s: float) -> bool:
        """Return whether every turn was settled in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._turns.work.settled()
        except TimeoutError:
            return False
        return True

    async def hand_over(self, shards: Iterable[int]) -> None:
        """Refuse calls to ``shards`` from this moment, and return when nothing of them is left.

        The turn that runs may end and what was written settles; what waits for its turn fails as
        retriable. The shards stay owned, and refused, until `Ownership.lose`.
        """
        gone = frozenset(shards)
        assert gone, "something is handed over"
        await self._turns.departures.hand_over(gone)
        assert not any(self.ownership.serves(shard) for shard in gone), "nothing is served again"

    def hold(self, shards: Iterable[int], until: asyncio.Event) -> None:
        """Let actors of shards that were just gained wait for ``until`` before their first turn."""
        assert not until.is_set(), "what is held waits"
        self._turns.holds.update(dict.fromkeys(shards, until))
        assert all(self.ownership.owns(shard) for shard in self.holding(until))

    def holding(self, until: asyncio.Event) -> frozenset[int]:
        """Return the shards that wait for ``until``."""
        holds = self._turns.holds
        return frozenset(shard for shard, event in holds.items() if event is until)

    def release(self, until: asyncio.Event) -> None:
        """Go on with whatever still waits for ``until``."""
        for shard in self.holding(until):
            del self._turns.holds[shard]
        until.set()
        assert not self.holding(until), "nothing waits for it any more"
        assert until not in self._turns.holds.values()

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
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        """Run one turn and return its reply once the turn is durable.

        With ``key`` the turn happens once: the same key and request give the same reply for
        ``IDEMPOTENCY_TTL_MS``. A caller that goes away does not tear the turn. ``internal`` calls
        (an effect's outcome) are still taken while the gate is closed to everyone else. ``chain``
        are the actors that wait for this call, on whichever node, and it is none of theirs.

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
        assert actor not in chain, "an actor that waits is not called"
        envelope = Envelope(
            actor=actor, message=message, principal=principal, timeout_ms=timeout_ms, chain=chain
        )
        if key is None:
            self._turns.dispatch(envelope)
        else:
            envelope = self._keyed.begin(envelope, key)
        return await self.answer(envelope, timeout_ms)

    def begin(
        self, actor: ActorId, message: Message, principal: str, timeout_ms: int, *, is_query: bool
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
        self,
        actor: ActorId,
        query: Message,
        *,
        timeout_ms: int = limits.INVOCATION_TIMEOUT_MS,
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        """Answer from the last finished turn's state, once that state is durable.

        Raises:
            DeadlineError: ``timeout_ms`` passed.
            KelpieError: The machine cannot answer, or the actor cannot be loaded.
        """
        envelope = Envelope(
            actor=actor,
            message=query,
            principal="",
            timeout_ms=timeout_ms,
            is_query=True,
            chain=chain,
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
        if self.elsewhere is not None and not self.ownership.serves(actor.shard):
            return await self.elsewhere.call(
                actor,
                message,
                principal=envelope.principal,
                key=key,
                timeout_ms=timeout_ms,
                internal=True,  # a handler that runs may finish while its node shuts down
                chain=envelope.chain,
            )
        if key is None:
            self._turns.dispatch(envelope)
        else:
            envelope = self._keyed.begin(envelope, key)
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
        if self.elsewhere is not None and not self.ownership.serves(actor.shard):
            return await self.elsewhere.query(
                actor, message, timeout_ms=timeout_ms, chain=envelope.chain
            )
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

    async def answer(self, envelope: Envelope, timeout_ms: int) -> Any:
        """Return the answer, which is often there: then no future, timer or clock is needed.

        Raises:
            DeadlineError: ``timeout_ms`` passed; the turn may still happen if it had begun.
            KelpieError: The turn failed.
        """
        if not envelope.is_answered:
            return await self._deadlines.wait(envelope.listen(), envelope.actor, timeout_ms)
        if not self.may_go_on(envelope):
            await self._ticks.rest()
        return envelope.result()

    def check_invariants(self) -> None:
        """Assert what holds between turns, over every resident actor."""
        self._turns.check_invariants()
        self._keyed.check_invariants()


def _failed(error: KelpieError) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future
