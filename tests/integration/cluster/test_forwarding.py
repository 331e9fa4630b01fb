"""Calls over real sockets to the actors of a real engine on another node."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from opentelemetry import trace

from kelpie.actors.engine import Engine
from kelpie.actors.ownership import Ownership
from kelpie.cluster.router import Router
from kelpie.cluster.service import ClusterService
from kelpie.core.errors import ConflictError, KeyReusedError, NotFoundError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.host.clock import HostClock
from kelpie.host.rng import HostRng
from kelpie.host.telemetry import HostTelemetry
from tests.integration.actors.counter import Add, Break, Show, counter
from tests.integration.actors.test_engine import run_node
from tests.integration.cluster.support import TestNode, identity, nodes

ACTOR = counter("a")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Pair:
    """A node without actors that routes to one whose engine has them."""

    def __init__(self, stack: AsyncExitStack, path: Path) -> None:
        self._stack = stack
        self._path = path
        self.seen: list[str] = []
        self.telemetry = HostTelemetry(level="error", style="json", clock=HostClock())

    async def open(self) -> Router:
        enter = self._stack.enter_async_context
        (self._path / "far").mkdir()
        (self._path / "near").mkdir()
        far = await enter(run_node(self._path / "far", pumps=False))
        near = await enter(run_node(self._path / "near", pumps=False, hosts=False))
        self.far: Engine = far.runtime

        def within(traceparent: str) -> object:
            self.seen.append(traceparent)
            return self.telemetry.within(traceparent)

        service = ClusterService(
            local=far.runtime,
            ownership=Ownership(far.store.grants()),
            supervisor=far.supervisor,
            within=within,  # type: ignore[arg-type]
        )
        one, two = await enter(
            nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"), service))
        )
        ownership = Ownership()
        ownership.point(dict.fromkeys(range(256), two.address))
        return Router(
            local=near.runtime,
            lines=one.lines,
            ownership=ownership,
            address=one.address,
            clock=HostClock(),
            rng=HostRng(),
            supervisor=one.supervisor,
            telemetry=one.telemetry,
            traceparent=self.telemetry.traceparent,
        )


@pytest.mark.requirement("CLUSTER-ANY-NODE", "CLUSTER-FORWARDED-ONCE")
async def test_calls_queries_keys_and_refusals_are_those_of_the_owners_engine(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        pair = Pair(stack, tmp_path)
        router = await pair.open()
        assert await router.call(ACTOR, Add(3), principal="p") == 3
        assert await router.call(ACTOR, Add(3), principal="p") == 6
        assert await router.call(ACTOR, Add(4), principal="p", key="k") == 10
        assert await router.call(ACTOR, Add(4), principal="p", key="k") == 10
        with pytest.raises(KeyReusedError):
            await router.call(ACTOR, Add(5), principal="p", key="k")
        with pytest.raises(ConflictError):
            await router.call(ACTOR, Break(), principal="p")
        with pytest.raises(NotFoundError, match="actor type"):
            await router.call(ActorId(TENANT_DEFAULT, "nothing", "a"), Add(1), principal="p")
        shown = await router.query(ACTOR, Show())
        assert shown["total"] == (await pair.far.query(ACTOR, Show())).total == 10


async def test_the_callers_trace_goes_on_at_the_owner(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        pair = Pair(stack, tmp_path)
        router = await pair.open()
        with pair.telemetry.within(PARENT):
            assert pair.telemetry.traceparent() == PARENT
            await router.call(ACTOR, Add(1), principal="p")
        await router.call(ACTOR, Add(1), principal="p")
        assert pair.seen == [PARENT, ""]
        with pair.telemetry.within("no traceparent\x00"):
            assert not trace.get_current_span().get_span_context().is_valid
