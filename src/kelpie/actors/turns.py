"""Turns: one at a time per actor, committed in order, answered once durable.

Owns the resident actors and what happens to each: activation, turns, commits, the output gate,
discarding. `handlers` runs the turns that need a task; `engine` is what the rest of the product
calls.

Invariants: no answer leaves before its version is durable; at most one activation per actor; a
failed load fails its callers and never becomes an empty state; nothing that was queued is dropped
without an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kelpie.actors.activation import Activation, Envelope, Waiter
from kelpie.actors.blocking import BLOCKING_NS_MAX, BlockingWatch
from kelpie.actors.commands import Message, Reply
from kelpie.actors.commit import Drafted, draft_commit
from kelpie.actors.failures import find_place
from kelpie.actors.hosted import Hosted
from kelpie.actors.machine import Decision, Turn
from kelpie.actors.residents import Residents
from kelpie.actors.supervisor import Supervisor
from kelpie.core import limits
from kelpie.core.errors import (
    ActorFailedError,
    CommitUnknownError,
    DeadlineError,
    DrainingError,
    FencedError,
    KelpieError,
    NotFoundError,
    OverloadedError,
    StoreError,
    VersionConflictError,
)
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.faults import fault
from kelpie.ports.meter import Meter
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store
from kelpie.storage.records import Commit, CommitReceipt, StoredActor

NANOSECONDS_PER_MS: Final = 1_000_000

CommitListener = Callable[[Commit, CommitReceipt], None]
"""Called on the loop, in order, once a commit is durable; must be quick and must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What turns need of the world."""

    store: Store
    clock: Clock
    rng: Rng
    telemetry: Telemetry
    supervisor: Supervisor
    meter: Meter | None = None


class Turns:
    """The turns of one process's actors."""

    def __init__(self, ports: Ports, residents: Residents) -> None:
        self.ports = ports
        self.residents = residents
        self.types: dict[str, Hosted] = {}
        self.paused: set[ActorId] = set()
        self.listeners: list[CommitListener] = []
        self.begin_handler: Callable[[Activation, Envelope], None] | None = None
        self._epochs = {grant.shard: grant.epoch for grant in ports.store.grants()}
        self._seed = ports.rng.bytes(16)
        self._turn_count = 0
        self._now_ms = ports.clock.now_ms
        self._boot_ns = ports.clock.boot_ns
        self.blocking = BlockingWatch(
            clock=ports.clock, telemetry=ports.telemetry, meter=ports.meter
        )
        self._unsettled = 0
        self._rest: asyncio.Future[None] | None = None

    # --- into the actor -------------------------------------------------------------------------

    def dispatch(self, envelope: Envelope) -> None:
        """Run the envelope's turn now, or queue it behind what the actor is doing."""
        activation = self.residents.get(envelope.actor)
        if activation is None:
            self._set_deadline(envelope)
            self._activate(envelope)
            return
        activation.touched = True
        if activation.phase == "ready":
            if envelope.is_query:
                self._run_query(activation, envelope)
                return
            # `Activation.open`, in place: every call comes by here.
            is_held = activation.paused or activation.blocked or activation.running is not None
            if not (is_held or activation.mailbox):
                self._run(activation, envelope)
                return
        self._set_deadline(envelope)
        mailbox = activation.mailbox
        if mailbox is None:
            mailbox = activation.mailbox = deque()
        if len(mailbox) >= limits.MAILBOX_DEPTH_MAX:
            message = f"{envelope.actor} has {limits.MAILBOX_DEPTH_MAX:,} calls waiting; try again"
            envelope.fail(OverloadedError(message, actor=str(envelope.actor)))
            return
        mailbox.append(envelope)

    def _set_deadline(self, envelope: Envelope) -> None:
        """Look at the clock for a message that has to wait; no other needs to."""
        if envelope.timeout_ms and not envelope.deadline_ns:
            now_ns = self._boot_ns()
            envelope.deadline_ns = now_ns + envelope.timeout_ms * NANOSECONDS_PER_MS

    def _activate(self, envelope: Envelope) -> None:
        hosted = self.types.get(envelope.actor.type)
        if hosted is None:
            envelope.fail(NotFoundError("actor type", envelope.actor.type))
            return
        activation = Activation(envelope.actor, hosted)
        activation.paused = envelope.actor in self.paused
        self.residents.add(activation)
        activation.mailbox = deque((envelope,))
        self.ports.supervisor.start(f"actors.load:{envelope.actor}", self._load(activation))
        for gone in self.residents.sweep():
            self.deactivate(gone)

    def deactivate(self, activation: Activation) -> None:
        """Run the hook of an activation that left memory, once and after its last handler."""
        extras, state = activation.hosted.extras, activation.state
        if extras is None or not extras.has_hooks or state is None:
            return
        if activation.running is not None:
            return
        activation.state = None
        try:
            extras.deactivated(activation.actor, state)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a hook's bug is reported; the actor has left
            self.report_failure(activation, error)

    async def _load(self, activation: Activation) -> None:
        self.unsettle()
        try:
            await self._load_or_fail(activation)
        finally:
            self.settle()

    async def _load_or_fail(self, activation: Activation) -> None:
        try:
            stored = await self.ports.store.load(activation.actor)
            if fault("concurrency.data_race"):
                await asyncio.sleep(0)
        except KelpieError as error:
            self.discard(activation, error)
            return
        except Exception as error:  # noqa: BLE001  whatever it was, callers must not hang
            self._fail_load(activation, error)
            return
        try:
            self._install(activation, stored)
        except KelpieError as error:
            self.discard(activation, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a hook's bug is this actor's alone
            self._fail_load(activation, error)
        else:
            self.run_mailbox(activation)

    def _fail_load(self, activation: Activation, error: BaseException) -> None:
        self._log_bug("actor.load_failed", activation, error)
        failure = ActorFailedError(f"{activation.actor} could not be loaded: {error!r}")
        failure.__cause__ = error
        self.discard(activation, failure)

    def _install(self, activation: Activation, stored: StoredActor | None) -> None:
        machine = activation.hosted.machine
        assert activation.phase == "loading", "only a loading actor takes a stored state"
        if stored is None or stored.tombstoned:
            activation.state = machine.create(activation.actor)
            activation.incarnation = stored.incarnation + 1 if stored else 1
            activation.version = activation.durable_version = 0
        else:
            activation.state = machine.load(stored)
            activation.incarnation = stored.incarnation
            activation.version = activation.durable_version = stored.version
            self.residents.resize(activation, len(stored.state))
        activation.phase = "ready"
        activation.check_invariants()

    def run_mailbox(self, activation: Activation) -> None:
        """Give queued messages their turns, until the actor is busy or the loop wants a chance."""
        now_ns = self.ports.clock.boot_ns
        ends_ns = now_ns() + limits.TURNS_MS_PER_TICK_MAX * NANOSECONDS_PER_MS
        for number in range(limits.TURNS_PER_TICK_MAX):
            if number and now_ns() >= ends_ns:
                break
            mailbox = activation.mailbox
            if not mailbox:
                activation.mailbox = None
                return
            if activation.phase != "ready":
                return
            if mailbox[0].is_query:
                self._run_query(activation, mailbox.popleft())
            elif activation.open:
                self._run(activation, mailbox.popleft())
            else:
                self._answer_queries(activation)
                return
        asyncio.get_running_loop().call_soon(self.run_mailbox, activation)

    def _answer_queries(self, activation: Activation) -> None:
        """Answer the queries that came while the actor was being loaded: they never wait."""
        mailbox = activation.mailbox or deque()
        if not any(envelope.is_query for envelope in mailbox):
            return
        activation.mailbox = deque(each for each in mailbox if not each.is_query)
        for envelope in mailbox:
            if envelope.is_query:
                self._run_query(activation, envelope)

    # --- out of memory --------------------------------------------------------------------------

    def discard(self, activation: Activation, error: KelpieError) -> None:
        """Forget an activation; everything that waits on it fails with ``error``."""
        if activation.phase == "gone":
            return
        activation.phase = "gone"
        self.residents.discard(activation)
        self._stop_handler(activation)
        for waiter in activation.waiters or ():
            waiter.envelope.fail(error)
            self.settle()
        activation.waiters = None
        for envelope in activation.mailbox or ():
            envelope.fail(error)
        activation.mailbox = None
        self.deactivate(activation)

    def retire(self) -> None:
        """Let go of actors with a hook to run, a handler or waiting calls, at a drain's end."""
        error = DrainingError("the node is shutting down; try again")
        for activation in list(self.residents):
            extras = activation.hosted.extras
            is_busy = bool(activation.mailbox) or activation.running is not None
            if is_busy or (extras is not None and extras.has_hooks):
                self.discard(activation, error)

    def renew(self, activation: Activation) -> None:
        """Load the actor again before its next turn, once what it wrote is durable."""
        if activation.phase != "ready":
            return
        activation.phase = "settling"
        self._stop_handler(activation)
        self._renew_when_settled(activation)

    def _stop_handler(self, activation: Activation) -> None:
        running = activation.running
        if running is not None and running.task is not None:
            running.task.cancel()

    def _renew_when_settled(self, activation: Activation) -> None:
        in_flight = activation.durable_version < activation.version or activation.waiters
        if activation.phase != "settling" or in_flight or activation.running is not None:
            return
        self.deactivate(activation)
        if not activation.mailbox:
            activation.mailbox = None
            activation.phase = "gone"
            self.residents.discard(activation)
            return
        activation.phase = "loading"
        self.ports.supervisor.start(f"actors.load:{activation.actor}", self._load(activation))

    def _leave(self, activation: Activation) -> None:
        """The actor is deleted: whoever queued meanwhile meets its next incarnation."""
        queued = activation.mailbox or ()
        activation.mailbox = None
        self.discard(activation, NotFoundError("actor", str(activation.actor)))
        for envelope in queued:
            self.dispatch(envelope)

    # --- turns ----------------------------------------------------------------------------------

    def _run(self, activation: Activation, envelope: Envelope) -> None:
        if envelope.deadline_ns and self._boot_ns() >= envelope.deadline_ns:
            envelope.fail(self.late(envelope.actor))
            return
        message, hosted = envelope.message, activation.hosted
        needs_task = hosted.are_async.get(type(message))
        if needs_task is None:
            needs_task = hosted.is_async(message)
        if needs_task:
            assert self.begin_handler is not None, "async handlers need their runner"
            self.begin_handler(activation, envelope)
            return
        self.decide(activation, envelope, message, self.new_turn(envelope))

    def late(self, actor: ActorId) -> DeadlineError:
        """Return the error of a call whose deadline passed before its turn began."""
        return DeadlineError(
            f"{actor} was busy until the deadline of this call; nothing happened", actor=str(actor)
        )

    def new_turn(self, envelope: Envelope) -> Turn:
        """Return the world as the envelope's turn will see it."""
        number = self._turn_count + 1
        assert 0 < number < 1 << 64, "a turn's number fits its seed"
        self._turn_count = number
        assert self._seed, "turns of two processes differ"
        is_once = envelope.key is None and envelope.message_id is None and envelope.fired is None
        return Turn(
            actor=envelope.actor,
            now_ms=self._now_ms(),
            seed=self._seed + number.to_bytes(8, "big"),
            principal=envelope.principal,
            request_id="" if is_once else envelope.request_id(),
        )

    def decide(
        self, activation: Activation, envelope: Envelope, message: Message, turn: Turn
    ) -> None:
        """Run the transition for ``message``, commit what follows, and answer the envelope."""
        assert activation.running is None, "two turns of one actor at once"
        began_ns = self._boot_ns()
        if began_ns >= self.blocking.look_ns:
            self.blocking.look(began_ns)
        try:
            decision = activation.hosted.decide(activation.state, message, turn)
            drafted, value, commands = None, None, decision.commands
            # Without a change or a stored cause there is nothing to commit, but for what it asks.
            is_quiet = decision.state is activation.state and not turn.request_id
            if is_quiet and len(commands) == 1 and isinstance(reply := commands[0], Reply):
                value = reply.value
            elif commands or not is_quiet:
                drafted = self._draft(activation, envelope, decision, turn)
        except KelpieError as error:
            envelope.fail(error)
            return
        except KeyboardInterrupt:
            raise  # a person's, at the program that embeds this
        except BaseException as error:  # noqa: BLE001  a machine's bug is this actor's alone
            envelope.fail(self.failed(activation, error))
            self.renew(activation)
            return
        finally:
            elapsed_ns = self._boot_ns() - began_ns
            if elapsed_ns > BLOCKING_NS_MAX:
                self.blocking.report(elapsed_ns, activation.actor, message)
        if drafted is None:
            if activation.durable_version >= activation.version:
                envelope.succeed(value)
            else:
                self.answer_when_durable(activation, envelope, value)
            return
        kind = activation.actor.type
        self.ports.telemetry.observe("kelpie.turn.duration", elapsed_ns / 1e9, type=kind)
        self._take_over(activation, decision, drafted)
        self._submit(activation, envelope, drafted)

    def _take_over(self, activation: Activation, decision: Decision[Any], drafted: Drafted) -> None:
        """Make what a turn came to the state that the next one begins with."""
        activation.state = decision.state
        activation.version += 1
        if drafted.commit.state is not None:
            self.residents.resize(activation, len(drafted.commit.state))
        if drafted.commit.tombstone:
            activation.phase = "leaving"

    def _draft(
        self, activation: Activation, envelope: Envelope, decision: Decision[Any], turn: Turn
    ) -> Drafted:
        epoch = self._epochs.get(activation.shard)
        if epoch is None:
            raise FencedError(f"this node does not own the shard of {activation.actor}")
        if fault("model.agent_loop_panic"):
            raise RuntimeError("the machine panicked")
        return draft_commit(
            activation,
            envelope,
            (decision.state, decision.commands),
            epoch=epoch,
            now_ms=turn.now_ms,
        )

    def _run_query(self, activation: Activation, envelope: Envelope) -> None:
        hosted, message = activation.hosted, envelope.message
        extras = hosted.extras
        needs_task = hosted.are_async.get(type(message))
        if needs_task is None:
            needs_task = hosted.is_async(message)
        began_ns = self._boot_ns()
        if began_ns >= self.blocking.look_ns:
            self.blocking.look(began_ns)
        try:
            if extras is None:
                value = hosted.machine.query(activation.state, message)
            elif needs_task:
                assert self.begin_handler is not None, "async handlers need their runner"
                self.begin_handler(activation, envelope)
                return
            else:
                value = extras.ask(activation.state, message, self.new_turn(envelope))
        except KelpieError as error:
            envelope.fail(error)
            return
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a machine's bug is this caller's alone
            envelope.fail(self.failed(activation, error))
            return
        finally:
            elapsed_ns = self._boot_ns() - began_ns
            if elapsed_ns > BLOCKING_NS_MAX:
                self.blocking.report(elapsed_ns, activation.actor, message)
        self.answer_when_durable(activation, envelope, value)

    # --- the output gate ------------------------------------------------------------------------

    def answer_when_durable(self, activation: Activation, envelope: Envelope, value: Any) -> None:
        """Answer once everything the activation has written so far is durable."""
        if activation.durable_version >= activation.version:
            envelope.succeed(value)
            return
        if activation.waiters is None:
            activation.waiters = deque()
        self.unsettle()
        activation.waiters.append(Waiter(activation.version, envelope, value))

    def _submit(self, activation: Activation, envelope: Envelope, drafted: Drafted) -> None:
        self.unsettle()
        try:
            outcome = self.ports.store.commit(drafted.commit)
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
        for listener in self.listeners:
            listener(drafted.commit, receipt)
        envelope.succeed(drafted.reply)
        self._release_waiters(activation)
        self.settle()
        if drafted.commit.tombstone:
            self._leave(activation)
        elif activation.phase == "settling":
            self._renew_when_settled(activation)

    def _refused(self, activation: Activation, envelope: Envelope, error: KelpieError) -> None:
        self.ports.telemetry.count("kelpie.commit.refusals", code=error.code)
        envelope.fail(error)
        self.settle()
        retry = VersionConflictError(
            f"an earlier turn of {activation.actor} was not stored ({error.code}); try again",
            actor=str(activation.actor),
        )
        self.discard(activation, retry)

    def _release_waiters(self, activation: Activation) -> None:
        waiters = activation.waiters
        while waiters and waiters[0].version <= activation.durable_version:
            waiter = waiters.popleft()
            waiter.envelope.succeed(waiter.value)
            self.settle()
        if not waiters:
            activation.waiters = None

    # --- handlers that ended --------------------------------------------------------------------

    def free(self, activation: Activation) -> None:
        """Go on with an actor whose handler ended."""
        assert activation.running is None, "the handler still runs"
        if activation.phase == "settling":
            self._renew_when_settled(activation)
        else:
            self.run_mailbox(activation)

    # --- settling -------------------------------------------------------------------------------

    def unsettle(self) -> None:
        """Count work that a drain must wait for."""
        assert self._unsettled >= 0
        self._unsettled += 1
        assert self._unsettled > 0

    def settle(self) -> None:
        """Count such work as done."""
        assert self._unsettled > 0, "nothing is unsettled"
        self._unsettled -= 1
        assert self._unsettled >= 0, "settled more turns than ran"
        if self._unsettled == 0 and self._rest is not None and not self._rest.done():
            self._rest.set_result(None)

    async def settled(self) -> None:
        """Return when no turn is unsettled."""
        assert self._rest is None or self._rest.done(), "two drains at once"
        while self._unsettled:
            self._rest = asyncio.get_running_loop().create_future()
            await self._rest
        assert self._unsettled == 0, "a turn is unsettled after draining"

    # --- failures -------------------------------------------------------------------------------

    def failed(self, activation: Activation, error: BaseException) -> ActorFailedError:
        """Report a handler's or a machine's exception, and return what its caller gets."""
        self.report_failure(activation, error)
        failure = ActorFailedError(
            f"{activation.actor} failed: {error!r}; nothing was changed",
            actor=str(activation.actor),
        )
        failure.__cause__ = error
        return failure

    def report_failure(self, activation: Activation, error: BaseException) -> None:
        """Count and log an exception that user code let go."""
        self.ports.telemetry.count("kelpie.turn.failures", type=activation.actor.type)
        self._log_bug("turn.failed", activation, error)

    def _log_bug(self, event: str, activation: Activation, error: BaseException) -> None:
        place = find_place(error)
        where = {"at": place} if place else {}
        self.ports.telemetry.log(
            "error", event, actor=str(activation.actor), error=repr(error), **where
        )

    def check_invariants(self) -> None:
        """Assert what holds between turns, over every resident actor."""
        self.residents.check_invariants()
        assert self._unsettled >= 0
