"""Turns: one at a time per actor, committed in order, answered once durable.

Owns the resident actors and what comes into them: activation, mailboxes, turns. `output` holds what
goes out until it may, `departures` lets actors go, `handlers` runs the turns that need a task;
`engine` is what the rest of the product calls.

Invariants: at most one activation per actor, and none of a shard that is not owned; a failed load
fails its callers and never becomes an empty state; nothing is loaded while a commit of the actor is
on its way; nothing that was queued is dropped without an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kelpie.actors.activation import Activation, Envelope
from kelpie.actors.blocking import BLOCKING_NS_MAX, NANOSECONDS_PER_MS, BlockingWatch
from kelpie.actors.commands import Message, Reply
from kelpie.actors.commit import Drafted, draft_commit
from kelpie.actors.deadlines import too_late
from kelpie.actors.departures import Departures
from kelpie.actors.failures import FailureLog
from kelpie.actors.hosted import Hosted
from kelpie.actors.machine import Decision, Turn
from kelpie.actors.output import OutputGate
from kelpie.actors.ownership import Ownership
from kelpie.actors.residents import Residents
from kelpie.actors.settling import OpenWork
from kelpie.actors.supervisor import Supervisor
from kelpie.core import limits
from kelpie.core.errors import (
    ActorFailedError,
    KelpieError,
    NotFoundError,
    OverloadedError,
)
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.faults import fault
from kelpie.ports.meter import Meter
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store
from kelpie.storage.records import StoredActor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What turns need of the world."""

    store: Store
    clock: Clock
    rng: Rng
    telemetry: Telemetry
    supervisor: Supervisor
    ownership: Ownership
    meter: Meter | None = None


class Turns:
    """The turns of one process's actors."""

    def __init__(self, ports: Ports, residents: Residents) -> None:
        self.ports = ports
        self.residents = residents
        self.types: dict[str, Hosted] = {}
        self.paused: set[ActorId] = set()
        self.holds: dict[int, asyncio.Event] = {}
        self._ownership = ports.ownership
        self.begin_handler: Callable[[Activation, Envelope], None] | None = None
        self._seed = ports.rng.bytes(16)
        self._turn_count = 0
        self._now_ms = ports.clock.now_ms
        self._boot_ns = ports.clock.boot_ns
        self.blocking = BlockingWatch(
            clock=ports.clock, telemetry=ports.telemetry, meter=ports.meter
        )
        self.failures = FailureLog(ports.telemetry)
        self.work = OpenWork()
        self.output = OutputGate(self)
        self.departures = Departures(self)

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
        elif activation.phase in {"departing", "stopped"}:
            envelope.fail(self._ownership.refusal(activation.shard))
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
        if not self._ownership.serves(activation.shard):
            envelope.fail(self._ownership.refusal(activation.shard))
            return
        activation.epoch = self._ownership.epoch(activation.shard)
        activation.paused = envelope.actor in self.paused
        self.residents.add(activation)
        activation.mailbox = deque((envelope,))
        self.load(activation)
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
            self.failures.report(activation, error)

    def load(self, activation: Activation) -> None:
        """Load an actor's state, then give what waits for it their turns."""
        activation.phase = "loading"
        self.ports.supervisor.start(f"actors.load:{activation.actor}", self._load(activation))

    async def _load(self, activation: Activation) -> None:
        self.work.begin()
        try:
            await self._load_or_fail(activation)
        finally:
            self.work.end()

    async def _load_or_fail(self, activation: Activation) -> None:
        try:
            await self.output.open_commits.settled(activation.actor)
            stored = await self.ports.store.load(activation.actor)
            if fault("concurrency.data_race"):
                await asyncio.sleep(0)
        except KelpieError as error:
            self.departures.discard(activation, error)
            return
        except Exception as error:  # noqa: BLE001  whatever it was, callers must not hang
            self._fail_load(activation, error)
            return
        while (hold := self.holds.get(activation.shard)) is not None:
            await hold.wait()
            activation.paused = activation.actor in self.paused
        if activation.phase != "loading":
            return  # its shard went meanwhile
        try:
            self._install(activation, stored)
        except KelpieError as error:
            self.departures.discard(activation, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a hook's bug is this actor's alone
            self._fail_load(activation, error)
        else:
            self.run_mailbox(activation)

    def _fail_load(self, activation: Activation, error: BaseException) -> None:
        self.failures.log("actor.load_failed", activation, error)
        failure = ActorFailedError(f"{activation.actor} could not be loaded: {error!r}")
        failure.__cause__ = error
        self.departures.discard(activation, failure)

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

    # --- turns ----------------------------------------------------------------------------------

    def _run(self, activation: Activation, envelope: Envelope) -> None:
        if envelope.deadline_ns and self._boot_ns() >= envelope.deadline_ns:
            envelope.fail(too_late(envelope.actor))
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

    def new_turn(self, envelope: Envelope) -> Turn:
        """Return the world as the envelope's turn will see it."""
        assert envelope.actor.type in self.types, "only an actor of a known type has turns"
        assert envelope.fired is None or envelope.message_id is None, "a turn has one cause"
        number = self._turn_count = self._turn_count + 1
        is_once = envelope.key is None and envelope.message_id is None and envelope.fired is None
        return Turn(
            actor=envelope.actor,
            now_ms=self._now_ms(),
            seed=self._seed,
            principal=envelope.principal,
            request_id="" if is_once else envelope.request_id(),
            number=number,
        )

    def decide(
        self, activation: Activation, envelope: Envelope, message: Message, turn: Turn
    ) -> None:
        """Run the transition for ``message``, commit what follows, and answer the envelope."""
        assert activation.running is None, "two turns of one actor at once"
        boot_ns = self._boot_ns
        began_ns = boot_ns()
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
            self.output.refuse(activation, envelope, error)
            return
        except KeyboardInterrupt:
            raise  # a person's, at the program that embeds this
        except BaseException as error:  # noqa: BLE001  a machine's bug is this actor's alone
            envelope.fail(self.failures.fail(activation, error))
            self.departures.renew(activation)
            return
        finally:
            ended_ns = boot_ns()
            if ended_ns - began_ns > BLOCKING_NS_MAX:
                self.blocking.report(ended_ns - began_ns, activation.actor, message)
        if drafted is None:
            owned = self._ownership
            if ended_ns < owned.until_ns and activation.durable_version >= activation.version:
                envelope.succeed(value)
            else:
                self.output.answer(activation, envelope, value, read_ns=ended_ns)
            return
        kind = activation.actor.type
        self.ports.telemetry.observe("kelpie.turn.duration", (ended_ns - began_ns) / 1e9, type=kind)
        self._take_over(activation, decision, drafted)
        self.output.commit(activation, envelope, drafted)

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
        if fault("model.agent_loop_panic"):
            raise RuntimeError("the machine panicked")
        return draft_commit(
            activation,
            envelope,
            (decision.state, decision.commands),
            epoch=activation.epoch,
            now_ms=turn.now_ms,
        )

    def _run_query(self, activation: Activation, envelope: Envelope) -> None:
        hosted, message = activation.hosted, envelope.message
        extras = hosted.extras
        needs_task = hosted.are_async.get(type(message))
        if needs_task is None:
            needs_task = hosted.is_async(message)
        boot_ns = self._boot_ns
        began_ns = boot_ns()
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
            self.output.refuse(activation, envelope, error)
            return
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a machine's bug is this caller's alone
            envelope.fail(self.failures.fail(activation, error))
            return
        finally:
            ended_ns = boot_ns()
            if ended_ns - began_ns > BLOCKING_NS_MAX:
                self.blocking.report(ended_ns - began_ns, activation.actor, message)
        owned = self._ownership
        if ended_ns < owned.until_ns and activation.durable_version >= activation.version:
            envelope.succeed(value)
        else:
            self.output.answer(activation, envelope, value, read_ns=ended_ns)

    # --- handlers that ended --------------------------------------------------------------------

    def free(self, activation: Activation) -> None:
        """Go on with an actor whose handler ended."""
        assert activation.running is None, "the handler still runs"
        if activation.phase == "ready":
            self.run_mailbox(activation)
        else:
            self.departures.go_on_when_settled(activation)

    def check_invariants(self) -> None:
        """Assert what holds between turns, over every resident actor."""
        self.residents.check_invariants()
        self.work.check_invariants()
        self.departures.check_invariants()
        for activation in self.residents:
            assert self._ownership.owns(activation.shard), "an actor of a lost shard is in memory"
