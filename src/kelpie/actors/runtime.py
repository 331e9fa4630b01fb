"""Hosts machines: activation, one turn at a time, and the output gate.

A turn runs inline and to its end; its commit is queued before the next turn may start, so turns of
one actor reach the store in order. A reply leaves when the newest version that it read is durable.
A refused commit discards the activation: its later turns and waiting replies fall with it and fail
as retriable; the next call loads what is really stored.

Invariants: no answer leaves before its version is durable; at most one activation per actor; a
failed load fails its callers and never becomes an empty state.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

import msgspec

from kelpie.actors.activation import Activation, Envelope, Waiter
from kelpie.actors.commands import Message, Reply
from kelpie.actors.commit import Drafted, draft_commit
from kelpie.actors.machine import Machine, Turn
from kelpie.actors.supervisor import Supervisor
from kelpie.core import limits
from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import (
    ActorFailedError,
    CommitUnknownError,
    DeadlineError,
    DrainingError,
    FencedError,
    InvalidFieldError,
    KelpieError,
    KeyReusedError,
    NotFoundError,
    OverloadedError,
    StoreError,
    VersionConflictError,
)
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store
from kelpie.storage.records import Commit, CommitReceipt, StoredActor

CommitListener = Callable[[Commit, CommitReceipt], None]
"""Called on the loop, in order, once a commit is durable; must be quick and must not raise."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_encode = msgspec.msgpack.Encoder().encode


class Runtime:
    """The actors of one process."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        rng: Rng,
        telemetry: Telemetry,
        supervisor: Supervisor,
        resident_max: int = limits.RESIDENT_ACTORS_MAX,
    ) -> None:
        assert resident_max >= 1
        self._store = store
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._supervisor = supervisor
        self._resident_max = resident_max
        self._machines: dict[str, Machine[Any]] = {}
        self._decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {}
        self._epochs = {grant.shard: grant.epoch for grant in store.grants()}
        self._residents: OrderedDict[ActorId, Activation] = OrderedDict()
        self._keyed: dict[tuple[ActorId, str, str], tuple[Digest, asyncio.Future[Any]]] = {}
        self._listeners: list[CommitListener] = []
        self._accepting = True
        self._unsettled = 0
        self._rest: asyncio.Future[None] | None = None

    # --- set-up and state -----------------------------------------------------------------------

    def register(self, machine: Machine[Any]) -> None:
        """Host actors of this machine's type; each type once."""
        assert machine.type_name not in self._machines, f"{machine.type_name} registered twice"
        assert not self._residents, "machines are registered before the first call"
        self._machines[machine.type_name] = machine
        self._decoders[machine.type_name] = msgspec.msgpack.Decoder(machine.message_type)

    def listen(self, listener: CommitListener) -> None:
        """Tell ``listener`` of every durable commit from now on."""
        assert listener not in self._listeners, "a listener is told once of each commit"
        self._listeners.append(listener)

    @property
    def resident_count(self) -> int:
        """How many actors are in memory."""
        return len(self._residents)

    def accepting(self) -> bool:
        """Whether new calls are taken."""
        return self._accepting

    def close_gate(self) -> None:
        """Refuse new calls from this moment."""
        self._accepting = False

    async def drain(self) -> None:
        """Refuse new calls from this moment, and return when every finished turn is settled."""
        assert self._rest is None or self._rest.done(), "two drains wait at once"
        self.close_gate()
        self.check_invariants()
        if self._unsettled:
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest
        assert self._unsettled == 0, "a turn is unsettled after draining"

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
            DeadlineError: ``timeout_ms`` passed; the turn may still happen.
            DrainingError: The node is shutting down.
            OverloadedError: The actor's mailbox is full.
            ActorFailedError: The turn raised; nothing of it was kept.
            StoreError: The commit was refused; nothing of it was kept unless the error says so.
            KelpieError: The machine refused the message.
        """
        self._require_accepting(internal=internal)
        if key is None:
            envelope = self._envelope(actor, message, principal)
            self._dispatch(envelope)
            return await self._answer(envelope.future, actor, timeout_ms)
        future = self._call_keyed(actor, message, principal, key)
        return await self._answer(future, actor, timeout_ms)

    async def query(
        self, actor: ActorId, query: Message, *, timeout_ms: int = limits.INVOCATION_TIMEOUT_MS
    ) -> Any:
        """Answer from the last finished turn's state, once that state is durable.

        Raises:
            DeadlineError: ``timeout_ms`` passed.
            KelpieError: The machine cannot answer, or the actor cannot be loaded.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        envelope = Envelope(actor=actor, message=query, principal="", future=future, is_query=True)
        self._dispatch(envelope)
        return await self._answer(future, actor, timeout_ms)

    def deliver(
        self,
        actor: ActorId,
        body: bytes,
        *,
        principal: str,
        message_id: int | None = None,
        fired: tuple[str, int] | None = None,
    ) -> asyncio.Future[Any]:
        """Run one turn for a stored message or a fired reminder, which the turn consumes.

        Raises (when awaited): as `call`; `InvalidFieldError` when the body does not decode.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        decoder = self._decoders.get(actor.type)
        try:
            message = decoder.decode(body) if decoder else None
        except msgspec.MsgspecError as error:
            future.set_exception(InvalidFieldError("message", str(error)))
            return future
        if message is None:
            future.set_exception(NotFoundError("actor type", actor.type))
            return future
        self._dispatch(
            Envelope(
                actor=actor,
                message=message,
                principal=principal,
                future=future,
                message_id=message_id,
                fired=fired,
            )
        )
        return future

    def _require_accepting(self, *, internal: bool) -> None:
        if not self._accepting and not internal:
            raise DrainingError("the node is shutting down; try again")

    async def _answer(self, future: asyncio.Future[Any], actor: ActorId, timeout_ms: int) -> Any:
        if future.done():
            return future.result()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await asyncio.shield(future)
        except TimeoutError:
            future.add_done_callback(_ignore_outcome)
            raise DeadlineError(
                f"{actor} did not answer within {timeout_ms:,} ms; its outcome may still follow",
                actor=str(actor),
                timeout_ms=timeout_ms,
            ) from None
        except asyncio.CancelledError:
            future.add_done_callback(_ignore_outcome)
            raise

    def _envelope(self, actor: ActorId, message: Message, principal: str) -> Envelope:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        return Envelope(actor=actor, message=message, principal=principal, future=future)

    # --- idempotency keys -----------------------------------------------------------------------

    def _call_keyed(
        self, actor: ActorId, message: Message, principal: str, key: str
    ) -> asyncio.Future[Any]:
        if not 1 <= len(key.encode()) <= limits.IDEMPOTENCY_KEY_BYTES_MAX:
            bound = limits.IDEMPOTENCY_KEY_BYTES_MAX
            raise InvalidFieldError("Idempotency-Key", f"must be 1 to {bound} bytes")
        method = _tag(message)
        request = digest_bytes(_encode(message))
        scope = (actor, method, key)
        running = self._keyed.get(scope)
        if running is not None:
            if running[0] != request:
                raise _key_reused(key, method)
            return running[1]
        envelope = self._envelope(actor, message, principal)
        envelope.key = key
        envelope.request = request
        self._keyed[scope] = (request, envelope.future)
        envelope.future.add_done_callback(lambda _: self._keyed.pop(scope, None))
        self._supervisor.spawn("actors.keyed", self._run_keyed(envelope, method))
        return envelope.future

    async def _run_keyed(self, envelope: Envelope, method: str) -> None:
        assert envelope.key is not None
        try:
            kept = await self._store.reply(envelope.actor, method, envelope.key)
        except KelpieError as error:
            envelope.fail(error)
            return
        if kept is None:
            self._dispatch(envelope)
        elif kept.request != envelope.request:
            envelope.fail(_key_reused(envelope.key, method))
        else:
            reply_type = envelope.message.reply_type
            kind = Any if reply_type is None else reply_type
            envelope.succeed(msgspec.msgpack.decode(kept.reply, type=kind))

    # --- activation -----------------------------------------------------------------------------

    def _dispatch(self, envelope: Envelope) -> None:
        """Run the envelope's turn now, or queue it behind what the actor is doing."""
        activation = self._residents.get(envelope.actor)
        if activation is None:
            machine = self._machines.get(envelope.actor.type)
            if machine is None:
                envelope.fail(NotFoundError("actor type", envelope.actor.type))
                return
            activation = Activation(envelope.actor, machine)
            self._residents[envelope.actor] = activation
            activation.mailbox = deque((envelope,))
            self._supervisor.spawn(f"actors.load:{envelope.actor}", self._load(activation))
            self._evict()
            return
        if activation.phase == "ready" and not activation.mailbox:
            self._residents.move_to_end(envelope.actor)
            self._run(activation, envelope)
            return
        if activation.mailbox is None:
            activation.mailbox = deque()
        if len(activation.mailbox) >= limits.MAILBOX_DEPTH_MAX:
            message = f"{envelope.actor} has {limits.MAILBOX_DEPTH_MAX:,} calls waiting; try again"
            envelope.fail(OverloadedError(message, actor=str(envelope.actor)))
            return
        activation.mailbox.append(envelope)

    async def _load(self, activation: Activation) -> None:
        try:
            stored = await self._store.load(activation.actor)
            self._install(activation, stored)
        except KelpieError as error:
            self._discard(activation, error)
            return
        except Exception as error:  # noqa: BLE001  whatever it was, callers must not hang
            self._telemetry.log("error", "actor.load_failed", actor=str(activation.actor))
            failure = ActorFailedError(f"{activation.actor} could not be loaded: {error!r}")
            self._discard(activation, failure)
            return
        self._run_mailbox(activation)

    def _install(self, activation: Activation, stored: StoredActor | None) -> None:
        machine = activation.machine
        if stored is None or stored.tombstoned:
            activation.state = machine.create(activation.actor)
            activation.incarnation = stored.incarnation + 1 if stored else 1
        else:
            activation.state = machine.load(stored)
            activation.incarnation = stored.incarnation
            activation.version = activation.durable_version = stored.version
        activation.phase = "ready"
        activation.check_invariants()

    def _run_mailbox(self, activation: Activation) -> None:
        while activation.mailbox and activation.phase == "ready":
            self._run(activation, activation.mailbox.popleft())
        if not activation.mailbox:
            activation.mailbox = None

    def _evict(self) -> None:
        """Drop least recently used idle actors above the bound; never one with work in flight."""
        excess = len(self._residents) - self._resident_max
        if excess <= 0:
            return
        for actor, activation in list(self._residents.items()):
            if activation.idle:
                del self._residents[actor]
                activation.phase = "gone"
                excess -= 1
                if excess <= 0:
                    return

    def _discard(self, activation: Activation, error: KelpieError) -> None:
        """Forget an activation; everything that waits on it fails with ``error``."""
        if activation.phase == "gone":
            return
        activation.phase = "gone"
        if self._residents.get(activation.actor) is activation:
            del self._residents[activation.actor]
        for waiter in activation.waiters or ():
            waiter.envelope.fail(error)
            self._settle()
        activation.waiters = None
        for envelope in activation.mailbox or ():
            envelope.fail(error)
        activation.mailbox = None

    # --- turns ----------------------------------------------------------------------------------

    def _run(self, activation: Activation, envelope: Envelope) -> None:
        if envelope.is_query:
            self._run_query(activation, envelope)
            return
        began_ns = self._clock.boot_ns()
        try:
            drafted, state = self._contain(activation, self._decide, activation, envelope)
        except KelpieError as error:
            envelope.fail(error)
            return
        if drafted is None:
            self._answer_when_durable(activation, envelope, state)
            return
        activation.state = state
        activation.version += 1
        seconds = (self._clock.boot_ns() - began_ns) / 1e9
        self._telemetry.observe("kelpie.turn.duration", seconds, type=activation.actor.type)
        if drafted.commit.tombstone:
            activation.phase = "leaving"
        self._submit(activation, envelope, drafted)

    def _contain(self, activation: Activation, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Return what a machine's code returns.

        Raises:
            ActorFailedError: It has a bug, which is this actor's failure alone.
            KelpieError: What the machine raised on purpose.
        """
        try:
            return work(*arguments)
        except KelpieError:
            raise
        except Exception as error:
            self._report_failure(activation, error)
            raise ActorFailedError(
                f"{activation.actor} failed: {error!r}; nothing was changed",
                actor=str(activation.actor),
            ) from error

    def _decide(self, activation: Activation, envelope: Envelope) -> tuple[Drafted | None, Any]:
        """Run the transition; without anything to commit, return (None, the reply)."""
        now_ms = self._clock.now_ms()
        turn = Turn(
            actor=activation.actor,
            now_ms=now_ms,
            seed=self._rng.bytes(16),
            principal=envelope.principal,
        )
        decision = activation.machine.decide(activation.state, envelope.message, turn)
        causeless = envelope.message_id is None and envelope.fired is None and envelope.key is None
        if decision.state is activation.state and causeless and _only_replies(decision.commands):
            reply = decision.commands[0] if decision.commands else None
            return None, reply.value if isinstance(reply, Reply) else None
        epoch = self._epochs.get(activation.actor.shard)
        if epoch is None:
            raise FencedError(f"this node does not own the shard of {activation.actor}")
        drafted = draft_commit(
            activation, envelope, (decision.state, decision.commands), epoch=epoch, now_ms=now_ms
        )
        return drafted, decision.state

    def _run_query(self, activation: Activation, envelope: Envelope) -> None:
        try:
            query = activation.machine.query
            value = self._contain(activation, query, activation.state, envelope.message)
        except KelpieError as error:
            envelope.fail(error)
            return
        self._answer_when_durable(activation, envelope, value)

    def _answer_when_durable(self, activation: Activation, envelope: Envelope, value: Any) -> None:
        if activation.durable_version >= activation.version:
            envelope.succeed(value)
            return
        if activation.waiters is None:
            activation.waiters = deque()
        self._unsettled += 1
        activation.waiters.append(Waiter(activation.version, envelope, value))

    def _submit(self, activation: Activation, envelope: Envelope, drafted: Drafted) -> None:
        commit = drafted.commit
        self._unsettled += 1
        try:
            outcome = self._store.commit(commit)
        except KelpieError as error:
            self._refused(activation, envelope, error)
            return
        outcome.add_done_callback(lambda done: self._committed(activation, envelope, drafted, done))

    def _committed(
        self,
        activation: Activation,
        envelope: Envelope,
        drafted: Drafted,
        done: asyncio.Future[CommitReceipt],
    ) -> None:
        if done.cancelled():
            message = f"the commit of {activation.actor} was abandoned; read before you retry"
            self._refused(activation, envelope, CommitUnknownError(message))
            return
        error = done.exception()
        if error is not None:
            known = error if isinstance(error, KelpieError) else StoreError(repr(error))
            self._refused(activation, envelope, known)
            return
        receipt = done.result()
        assert receipt.version == drafted.commit.expected_version + 1, "versions grow by one"
        activation.durable_version = max(activation.durable_version, receipt.version)
        for listener in self._listeners:
            listener(drafted.commit, receipt)
        envelope.succeed(drafted.reply)
        self._release_waiters(activation)
        self._settle()
        if drafted.commit.tombstone:
            self._leave(activation)

    def _refused(self, activation: Activation, envelope: Envelope, error: KelpieError) -> None:
        self._telemetry.count("kelpie.commit.refusals", code=error.code)
        envelope.fail(error)
        self._settle()
        retry = VersionConflictError(
            f"an earlier turn of {activation.actor} was not stored ({error.code}); try again",
            actor=str(activation.actor),
        )
        self._discard(activation, retry)

    def _release_waiters(self, activation: Activation) -> None:
        waiters = activation.waiters
        while waiters and waiters[0].version <= activation.durable_version:
            waiter = waiters.popleft()
            waiter.envelope.succeed(waiter.value)
            self._settle()
        if not waiters:
            activation.waiters = None

    def _leave(self, activation: Activation) -> None:
        """The actor is deleted: whoever queued meanwhile meets its next incarnation."""
        queued = activation.mailbox or ()
        activation.mailbox = None
        self._discard(activation, NotFoundError("actor", str(activation.actor)))
        for envelope in queued:
            self._dispatch(envelope)

    def _settle(self) -> None:
        self._unsettled -= 1
        assert self._unsettled >= 0, "settled more turns than ran"
        if self._unsettled == 0 and self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    def _report_failure(self, activation: Activation, error: Exception) -> None:
        self._telemetry.count("kelpie.turn.failures", type=activation.actor.type)
        self._telemetry.log("error", "turn.failed", actor=str(activation.actor), error=repr(error))

    def check_invariants(self) -> None:
        """Assert what holds between turns, over every resident actor."""
        for actor, activation in self._residents.items():
            assert actor == activation.actor
            activation.check_invariants()
        assert self._unsettled >= 0
        assert self._rest is None or not self._accepting, "it drains while it accepts"


def _tag(message: Message) -> str:
    tag = type(message).__struct_config__.tag
    assert isinstance(tag, str), "messages are tagged with strings"
    return tag


def _only_replies(commands: Sequence[object]) -> bool:
    return not commands or (len(commands) == 1 and isinstance(commands[0], Reply))


def _key_reused(key: str, method: str) -> KeyReusedError:
    return KeyReusedError(
        f"Idempotency-Key {key[:64]!r} was used for another {method} request; choose a new key",
        key=key[:64],
    )


def _ignore_outcome(future: asyncio.Future[Any]) -> None:
    """Mark an abandoned answer's error as seen."""
    if not future.cancelled():
        future.exception()
