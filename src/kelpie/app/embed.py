"""The actor runtime inside any asyncio program, in three lines.

    async with Runtime.open("data.db", actors=[Counter]) as runtime:
        await runtime.ref(Counter, "a").add(1)

Opens what the server opens (store, engine, gate, pumps), without an HTTP edge.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.gateway import Gateway
from kelpie.actors.api.hosting import ActorMachine
from kelpie.actors.api.settled import EffectWish, Settled
from kelpie.actors.commands import Command, Message
from kelpie.actors.engine import Engine
from kelpie.actors.hub import EventHub
from kelpie.actors.machine import Machine
from kelpie.actors.outbox import OutboxPump
from kelpie.actors.pauses import Pauses
from kelpie.actors.pump import PumpDeps
from kelpie.actors.reminders import ReminderPump
from kelpie.actors.submissions import Submissions
from kelpie.actors.supervisor import Supervisor
from kelpie.app.stores import NodeStore
from kelpie.app.wiring import kinds_of
from kelpie.app.world import OpenStore, open_sqlite
from kelpie.core import limits
from kelpie.core.errors import ConfigError
from kelpie.core.ids import TENANT_DEFAULT, Tenant
from kelpie.effects.dispatcher import Dispatcher
from kelpie.effects.executor import Executor
from kelpie.effects.gate import Gated
from kelpie.effects.messages import EffectSettled
from kelpie.effects.model import Effect
from kelpie.effects.policy import Policy
from kelpie.effects.rules import GateRules
from kelpie.host.clock import HostClock
from kelpie.host.heap import short_pauses
from kelpie.host.meter import HostMeter
from kelpie.host.rng import HostRng
from kelpie.host.telemetry import HostTelemetry
from kelpie.ports.clock import Clock
from kelpie.ports.meter import Meter
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry


class SpinePort:
    """The effects' room as actor classes use it. Implements `EffectPort`."""

    def propose(self, wish: EffectWish) -> Command:
        """Return the gate's command for a wish."""
        return Effect(
            kind=wish.kind,
            ref=wish.ref,
            args=wish.args,
            timeout_ms=wish.timeout_ms,
            summary=wish.summary,
        )

    def read(self, message: Message) -> Settled | None:
        """Return what became of an effect; None for news that no class hears."""
        if not isinstance(message, EffectSettled):
            return None
        record = message.record
        outcome = record.outcome
        ends = ("done", "failed", "denied", "expired", "voided", "cancelled", "unknown")
        assert record.state in ends, f"an effect settled as {record.state}"
        return Settled(
            ref=message.ref,
            status=record.state,  # type: ignore[arg-type]
            result=outcome.result if outcome else {},
            error=(outcome.error if outcome else "") or record.note,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedWorld:
    """The ports of an embedded runtime; without a meter, what holds the loop is told by time."""

    clock: Clock
    rng: Rng
    telemetry: Telemetry
    meter: Meter | None = None
    open_store: OpenStore = open_sqlite


class Runtime(Gateway):
    """Hosted actor classes in this process. Use `open`."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        path: str | Path,
        *,
        actors: Sequence[type[Actor[Any]]],
        executors: Sequence[Executor] = (),
        resident_bytes_max: int = limits.RESIDENT_BYTES_MAX,
        tenant: str = TENANT_DEFAULT,
        world: EmbeddedWorld | None = None,
    ) -> AsyncGenerator[Runtime]:
        """Open the store at ``path`` (created if absent), host the classes and drive what waits.

        At the end nothing new is taken, what runs is finished, and the store is closed. In the
        host's own world the process's garbage collector is kept from long pauses meanwhile (see
        `kelpie.host.heap`).

        Args:
            path: The store's file; it has one holder at a time.
            actors: The classes to host.
            executors: Who carries effects out; without any, ``ctx.effect`` is an error.
            resident_bytes_max: Memory for idle actors; the least recently used leave above it.
            tenant: Whose keys these are.
            world: Clock, randomness and telemetry; the host's own when None.

        Raises:
            DefinitionError: A class cannot be hosted as it is written.
            StoreHeldError: Another process holds the store.
            StoreError: The store cannot be opened.
            ConfigError: Python runs with ``-O``, which removes the assertions that guard state.
        """
        if not __debug__:
            raise ConfigError("python -O removes the assertions that guard state; start without it")
        async with AsyncExitStack() as stack:
            ports = world or _host_world(stack)
            store = await ports.open_store(_make_place(path), "", ports.clock, ports.rng)
            stack.push_async_callback(store.close)
            parts = _Parts(ports, store, executors, resident_bytes_max)
            stack.push_async_callback(parts.supervisor.close)
            parts.host(actors)
            stack.push_async_callback(parts.drain)
            await parts.pauses.load()
            await parts.drive()
            if world is None:
                stack.enter_context(short_pauses())
            yield cls(
                engine=parts.engine,
                store=store,
                hub=parts.hub,
                wake_outbox=parts.outbox.wake,
                calls=parts.calls,
                pauses=parts.pauses,
                kinds=actors,
                tenant=Tenant(tenant),
            )


def _make_place(path: str | Path) -> Path:
    file = Path(path).absolute()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return file


def _host_world(stack: AsyncExitStack) -> EmbeddedWorld:
    clock = HostClock()
    telemetry = HostTelemetry(level="warning", style="console", clock=clock, traces_endpoint="")
    stack.callback(telemetry.close)
    meter = HostMeter()
    stack.callback(meter.close)
    return EmbeddedWorld(clock=clock, rng=HostRng(), telemetry=telemetry, meter=meter)


class _Parts:
    """The machinery of one embedded runtime."""

    def __init__(
        self,
        world: EmbeddedWorld,
        store: NodeStore,
        executors: Sequence[Executor],
        resident_bytes_max: int,
    ) -> None:
        self.supervisor = Supervisor(clock=world.clock, telemetry=world.telemetry)
        self.hub = EventHub()
        self.engine = Engine(
            store=store,
            clock=world.clock,
            rng=world.rng,
            telemetry=world.telemetry,
            supervisor=self.supervisor,
            meter=world.meter,
            resident_bytes_max=resident_bytes_max,
        )
        self._rules = GateRules(policy=Policy(), kinds=kinds_of(executors))
        self._has_effects = bool(executors)
        self._dispatcher = Dispatcher(
            store=store,
            runtime=self.engine,
            hub=self.hub,
            executors=executors,
            clock=world.clock,
            telemetry=world.telemetry,
            supervisor=self.supervisor,
        )
        deps = PumpDeps(
            store=store,
            runtime=self.engine,
            clock=world.clock,
            telemetry=world.telemetry,
            supervisor=self.supervisor,
        )
        self._is_held = store.held
        self.outbox = OutboxPump(deps)
        self.calls = Submissions(deps, self.outbox, rng=world.rng)
        self.pauses = Pauses(deps)
        self._reminders = ReminderPump(deps)

    def host(self, kinds: Sequence[type[Actor[Any]]]) -> None:
        """Register every class, behind the gate when there are executors."""
        for kind in kinds:
            if self._has_effects:
                machine: Machine[Any] = Gated(ActorMachine(kind, SpinePort()), self._rules)
            else:
                machine = ActorMachine(kind)
            self.engine.register(machine)

    async def drive(self) -> None:
        """Begin to deliver and to execute, unless the store is held after a restore."""
        if self._is_held:
            await self._dispatcher.settle_restored()
            return
        self.outbox.start()
        self._reminders.start()
        await self._dispatcher.start()

    async def drain(self) -> None:
        """Take nothing new, and settle what runs."""
        self.engine.close_gate()
        await self._dispatcher.drain(limits.DRAIN_TIMEOUT_MS / 1000)
        await self.engine.drain()
