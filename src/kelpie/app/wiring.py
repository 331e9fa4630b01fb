"""Opens the product over a world: store, runtime, gate, executors, pumps, HTTP edge.

Start is all or nothing: a failure at any step closes what was opened before it. With ``drive`` what
is pending is executed; without, the store is served and only asked, and decisions are recorded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from kelpie.actors.calls import Calls
from kelpie.actors.engine import Engine
from kelpie.actors.hub import EventHub
from kelpie.actors.machine import Machine
from kelpie.actors.outbox import OutboxPump
from kelpie.actors.ownership import Ownership
from kelpie.actors.pauses import Pauses
from kelpie.actors.pump import PumpDeps
from kelpie.actors.reminders import ReminderPump
from kelpie.actors.sessions import EndedSessions
from kelpie.actors.submissions import Submissions
from kelpie.actors.supervisor import Supervisor
from kelpie.agents.machine import AgentMachine
from kelpie.agents.model_executor import ModelExecutor
from kelpie.app.cluster import Membership, OpenedParts, open_membership
from kelpie.app.gauges import report_gauges
from kelpie.app.stores import NodeStore, SharedNodeStore
from kelpie.app.workspaces import is_workspace, require_workspace
from kelpie.app.world import SCRATCH_DIRECTORY, World, host_world
from kelpie.core.errors import KelpieError
from kelpie.core.limits import DRAIN_TIMEOUT_MS, STOP_TIMEOUT_MS
from kelpie.effects.dispatcher import Dispatcher
from kelpie.effects.executor import Executor
from kelpie.effects.gate import Gated
from kelpie.effects.policy import Policy
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.infra.config import YamlLoader
from kelpie.infra.executor import PlanExecutor
from kelpie.infra.machine import ApplyMachine
from kelpie.infra.plans import Plans
from kelpie.infra.target import TargetMachine
from kelpie.llm.registry import ProviderRegistry, ResolvedProvider
from kelpie.sandbox.protocol import Sandbox
from kelpie.settings import Settings
from kelpie.tools.apply_executor import FilesApplyExecutor
from kelpie.tools.builtin import builtin_registry
from kelpie.tools.command_executor import CommandExecutor
from kelpie.tools.local_files import LocalFiles, LocalTarget
from kelpie.tools.read_executor import FilesReadExecutor
from kelpie.tools.registry import ToolRegistry

PREPARED_KINDS: Final = frozenset({"files.apply", "command.run", "plan.apply"})
GRANT_KINDS: Final = frozenset({"plan.apply"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The opened machinery below the HTTP edge.

    Attributes:
        runtime: The actors of this process.
        calls_to: Calls to actors wherever they are.
        membership: Its place among other nodes; None for a store of its own.
    """

    world: World
    store: NodeStore
    runtime: Engine
    calls_to: Calls
    membership: Membership | None
    dispatcher: Dispatcher
    hub: EventHub
    sandbox: Sandbox
    outbox: OutboxPump
    calls: Submissions
    pauses: Pauses
    reminders: ReminderPump
    supervisor: Supervisor
    tools: ToolRegistry
    plans: Plans
    rules: GateRules
    built_in_types: frozenset[str]

    @property
    def failure(self) -> KelpieError | None:
        """Why this process has to end: its store stopped, or the cluster refuses it."""
        refusal = None if self.membership is None else self.membership.refusal
        return self.store.failure or refusal

    def enter(self) -> None:
        """Take shards, if they are shared: every actor type is registered."""
        if self.membership is not None:
            self.membership.node.ready()

    async def drive(self) -> None:
        """Begin to execute what is pending, unless the store is held after a restore."""
        if self.store.held:
            await self.dispatcher.settle_restored()
            return
        pulse = partial(
            report_gauges,
            self.read_gauges,
            clock=self.world.clock,
            telemetry=self.world.telemetry,
        )
        self.supervisor.keep("app.gauges", pulse)
        await self.sandbox.reap_orphans()
        self.outbox.start()
        self.reminders.start()
        await self.dispatcher.start()

    def read_gauges(self) -> dict[str, float]:
        """Return how much the node holds now, by metric."""
        return {
            "kelpie.actors.resident": self.runtime.resident_count,
            "kelpie.effects.running": self.dispatcher.running_count,
            "kelpie.outbox.backlog": self.outbox.backlog,
            "kelpie.tasks": self.supervisor.task_count,
        }

    async def release(self) -> None:
        """End the held state that follows a restore, and begin to execute."""
        if not self.store.held:
            return
        await self.store.release()
        await self.drive()

    async def drain(self) -> None:
        """Take nothing new; let running attempts finish within the bound; settle every turn."""
        clock = self.world.clock
        ends_ns = clock.boot_ns() + DRAIN_TIMEOUT_MS * 1_000_000
        self.runtime.close_gate()
        await self.dispatcher.drain(DRAIN_TIMEOUT_MS / 1000)
        if self.membership is not None:
            await self.membership.leave()
        left_s = (ends_ns - clock.boot_ns()) / 1e9
        await self.runtime.drain(max(left_s, STOP_TIMEOUT_MS / 1000))


@asynccontextmanager
async def open_node(
    settings: Settings, *, world: World | None = None, address: str = ""
) -> AsyncGenerator[Node]:
    """Open the machinery in this process and yield it; everything is closed at the end.

    Nothing that is pending is executed before `Node.drive`.

    Args:
        settings: What a person configured.
        world: The ports; the host's own when None.
        address: Where this process listens, for those who find the store held.

    Raises:
        StoreHeldError: Another process holds the store.
        ConfigError: A setting does not fit this host.
        StoreError: The store cannot be opened.
    """
    async with AsyncExitStack() as stack:
        if world is None:
            world = await stack.enter_async_context(host_world(settings))
        node = await _open(settings, world, stack, address=address)
        stack.push_async_callback(node.drain)
        yield node


async def _open(settings: Settings, world: World, stack: AsyncExitStack, *, address: str) -> Node:
    store, shared = await _open_stores(settings, world, stack, address=address)
    supervisor = Supervisor(clock=world.clock, telemetry=world.telemetry)
    stack.push_async_callback(supervisor.close)
    sandbox = world.open_sandbox(store.blobs, settings.data_dir / SCRATCH_DIRECTORY)
    files = LocalFiles(store.blobs)
    tools = builtin_registry()
    executors = _make_executors(
        settings, world, store=store, sandbox=sandbox, files=files, tools=tools
    )
    runtime = _make_engine(world, store, supervisor)
    rules = GateRules(
        policy=Policy(),
        kinds=kinds_of(executors),
        approval_ttl_ms=settings.approvals.ttl_ms,
    )
    built_in_types = _register(runtime, tools, rules)
    hub = EventHub()
    deps = PumpDeps(
        store=store,
        runtime=runtime,
        clock=world.clock,
        telemetry=world.telemetry,
        supervisor=supervisor,
        is_one_of_several=shared is not None,
        horizon=None if shared is None else shared.message_horizon,
    )
    outbox = OutboxPump(deps)
    membership = None
    sessions = EndedSessions(clock=world.clock)
    if shared is not None:
        parts = OpenedParts(
            store=shared, engine=runtime, hub=hub, supervisor=supervisor, wake=outbox.wake_from
        )
        membership = await open_membership(settings, world, parts)
        stack.push_async_callback(membership.close)
        sessions = EndedSessions(shared.session_ended, clock=world.clock)
    calls_to: Calls = runtime if membership is None else membership.router
    dispatcher = Dispatcher(
        store=store,
        runtime=calls_to,
        listen=runtime.listen,
        ownership=runtime.ownership,
        sessions=sessions,
        hub=hub,
        executors=executors,
        clock=world.clock,
        telemetry=world.telemetry,
        supervisor=supervisor,
    )
    return Node(
        world=world,
        store=store,
        runtime=runtime,
        calls_to=calls_to,
        membership=membership,
        dispatcher=dispatcher,
        hub=hub,
        sandbox=sandbox,
        outbox=outbox,
        calls=Submissions(deps, outbox, rng=world.rng),
        pauses=Pauses(deps),
        reminders=ReminderPump(deps),
        supervisor=supervisor,
        tools=tools,
        plans=_make_plans(settings, world, store, calls_to, files),
        rules=rules,
        built_in_types=built_in_types,
    )


def _make_engine(world: World, store: NodeStore, supervisor: Supervisor) -> Engine:
    return Engine(
        store=store,
        ownership=Ownership(store.grants()),
        clock=world.clock,
        rng=world.rng,
        telemetry=world.telemetry,
        supervisor=supervisor,
        meter=world.meter,
    )


def _register(runtime: Engine, tools: ToolRegistry, rules: GateRules) -> frozenset[str]:
    """Host the built-in types, and return their names."""
    machines: tuple[Machine[Any], ...] = (
        Gated(AgentMachine(tools), rules),
        Gated(ApplyMachine(), rules),
        TargetMachine(),
    )
    for machine in machines:
        runtime.register(machine)
    return frozenset(machine.type_name for machine in machines)


async def _open_stores(
    settings: Settings, world: World, stack: AsyncExitStack, *, address: str
) -> tuple[NodeStore, SharedNodeStore | None]:
    """Open the store; it is given twice where nodes share it."""
    if settings.store.url is not None:
        opening = world.open_database(settings, settings.store.url, address)
        shared = await stack.enter_async_context(opening)
        return shared, shared
    for directory in (settings.data_dir, settings.store.path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = await world.open_store(settings.store.path, address, world.clock, world.rng)
    stack.push_async_callback(store.close)
    return store, None


def _make_executors(
    settings: Settings,
    world: World,
    *,
    store: NodeStore,
    sandbox: Sandbox,
    files: LocalFiles,
    tools: ToolRegistry,
) -> tuple[Executor, ...]:
    providers = make_providers(settings, world)

    allowed = partial(is_workspace, settings)
    return (
        ModelExecutor(store=store, tools=tools, resolve=providers.resolve, clock=world.clock),
        FilesReadExecutor(sandbox=sandbox, allowed=allowed),
        FilesApplyExecutor(files=files, allowed=allowed),
        CommandExecutor(sandbox=sandbox, allowed=allowed, clock=world.clock),
        PlanExecutor(open_target=lambda root: LocalTarget(Path(root), files)),
    )


def kinds_of(executors: Sequence[Executor]) -> dict[str, EffectKind]:
    """Return what the gate must know of each executor's kind."""
    return {
        each.kind: EffectKind(
            name=each.kind,
            prepares=each.kind in PREPARED_KINDS,
            promise=each.promise,
            is_grant=each.kind in GRANT_KINDS,
        )
        for each in executors
    }


def make_providers(settings: Settings, world: World) -> ProviderRegistry:
    """Return the configured model providers, with their keys looked up.

    Raises:
        ConfigError: A key's reference leads nowhere, or a provider's settings cannot be used.
    """
    resolved = tuple(
        ResolvedProvider(
            name=each.name,
            wire=each.wire,
            base_url=each.base_url,
            api_key=each.api_key.resolve(world.environment, field=f"providers.{each.name}.api_key")
            if each.api_key
            else "",
        )
        for each in settings.providers
    )
    return ProviderRegistry(
        resolved,
        network=world.network,
        clock=world.clock,
        rng=world.rng,
        telemetry=world.telemetry,
        capture_content=settings.telemetry.prompts,
    )


def _make_plans(
    settings: Settings, world: World, store: NodeStore, runtime: Calls, files: LocalFiles
) -> Plans:
    return Plans(
        runtime=runtime,
        store=store,
        loader=YamlLoader(),
        open_target=lambda root: LocalTarget(Path(root), files),
        require_root=partial(require_workspace, settings),
        rng=world.rng,
    )
