"""Builds the HTTP edge over an opened node."""

from __future__ import annotations

from functools import partial
from typing import Any

from kelpie import __version__
from kelpie.app.teleport import PackageFiles
from kelpie.app.wiring import Node
from kelpie.app.workspaces import require_workspace
from kelpie.cluster.teleport import Teleport
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import CorruptionError
from kelpie.core.ids import Tenant
from kelpie.core.limits import SHARD_COUNT
from kelpie.server.actors.service import ActorService
from kelpie.server.app import App, create_app
from kelpie.server.ops.responses import AuditSoundness, StoreSoundness
from kelpie.server.ports import ApiKey, Deps, PlanSource, ToolInfo
from kelpie.settings import Settings
from kelpie.storage.audit import verify_chain
from kelpie.tools.builtin import WORKSPACE_TOOLS

_UNPROVEN = (
    "the newest records of a chain could have been cut off, or the whole chain rewritten, by "
    "somebody who can write the store; compare with a backup"
)


class _PlanEdge:
    """The plan service in the edge's words."""

    def __init__(self, node: Node) -> None:
        self._plans = node.plans

    async def create(
        self, source: PlanSource, *, tenant: Tenant, principal: str, key: str | None
    ) -> dict[str, Any]:
        return await self._plans.create(
            workspace=source.workspace,
            yaml=source.yaml,
            root=source.root,
            local=source.local,
            tenant=tenant,
            principal=principal,
            key=key,
        )

    async def show(self, plan_id: str, *, tenant: Tenant) -> dict[str, Any]:
        return await self._plans.show(plan_id, tenant=tenant)

    async def list(self, *, tenant: Tenant, limit: int, after: str | None) -> list[dict[str, Any]]:
        return await self._plans.list(tenant=tenant, limit=limit, after=after)

    async def apply(
        self, plan_id: str, *, tenant: Tenant, principal: str, key: str | None
    ) -> dict[str, Any]:
        return await self._plans.apply(plan_id, tenant=tenant, principal=principal, key=key)


class _StoreEdge:
    """Care of the store in the edge's words."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def release(self) -> None:
        await self._node.release()

    async def check(self) -> StoreSoundness:
        report = await self._node.store.check()
        problems, damaged = list(report.problems), list(report.damaged)
        return StoreSoundness(ok=report.is_sound, problems=problems, damaged=damaged)

    async def verify_audit(self) -> AuditSoundness:
        chains = records = 0
        for shard in range(SHARD_COUNT):
            chain = [record async for record in self._node.store.audit_chain(shard)]
            chains += bool(chain)
            records += len(chain)
            try:
                verify_chain(chain, shard=shard)
            except CorruptionError as error:
                return _soundness(chains, records, problem=error.message)
        return _soundness(chains, records)


def _soundness(chains: int, records: int, *, problem: str = "") -> AuditSoundness:
    return AuditSoundness(
        ok=not problem, chains=chains, records=records, problem=problem, unproven=_UNPROVEN
    )


def make_edge(
    settings: Settings, node: Node, actors: ActorService, teleport: Teleport | None
) -> App:
    """Return the ASGI callable over ``node`` and its user-defined ``actors``.

    Raises:
        ConfigError: An API key's reference leads nowhere.
    """
    world = node.world
    return create_app(
        Deps(
            runtime=node.calls_to,
            hub=node.hub,
            store=node.store,
            cluster=node.store,
            clock=world.clock,
            rng=world.rng,
            telemetry=world.telemetry,
            plans=_PlanEdge(node),
            workspace_for=partial(require_workspace, settings),
            metrics_text=world.metrics_text,
            care=_StoreEdge(node),
            teleport=PackageFiles(settings, node, teleport),
            actors=actors,
            version=__version__,
            model_default=settings.model,
            model_providers=frozenset(provider.name for provider in settings.providers),
            tools=_describe_tools(node),
            forwarding=None if node.membership is None else node.membership.forwarding,
            api_keys=_api_keys(settings, node),
        )
    )


def _describe_tools(node: Node) -> dict[str, ToolInfo]:
    described: dict[str, ToolInfo] = {}
    for name in node.tools.names:
        tool = node.tools.get(name)
        described[name] = ToolInfo(
            name=name,
            description=tool.description,
            parameters=tool.parameters,
            base=True,
            needs_workspace=name in WORKSPACE_TOOLS,
        )
    return described


def _api_keys(settings: Settings, node: Node) -> tuple[ApiKey, ...]:
    environment = node.world.environment
    return tuple(
        ApiKey(
            name=str(index),
            digest=digest_bytes(
                reference.resolve(environment, field=f"server.api_keys[{index}]").encode()
            ),
        )
        for index, reference in enumerate(settings.server.api_keys)
    )
