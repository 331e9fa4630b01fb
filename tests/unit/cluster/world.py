"""A few nodes over the tables of one store, in the simulator's time."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from kelpie.actors.ownership import Ownership
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.node import ClusterNode, NodeConfig
from kelpie.cluster.placement import place
from kelpie.core.errors import KelpieError, StoreError
from kelpie.sim.clock import NANOSECONDS_PER_SECOND, MachineClock, SimulatedClock
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.models.tables import ClusterTables
from kelpie.sim.telemetry import RecordedTelemetry
from kelpie.storage.cluster import ClusterView, NodeRow, NodeState
from kelpie.storage.records import ShardGrant
from kelpie.storage.sqlite import nodes as rows
from kelpie.storage.sqlite.transaction import Transaction

T = TypeVar("T")
TTL_S = 2.0
LATENCY_S = 0.002
STEP_S = 0.005
HAND_OVER_S = 0.05


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` in virtual time."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.abandon()


class Store:
    """One node's way to the tables; it can be cut, and answers can be lost.

    Attributes:
        is_cut: Nothing arrives.
        lose: How many of the next answers are lost, after what was asked for has happened.
        calls: The methods asked for.
    """

    def __init__(self, tables: ClusterTables) -> None:
        self.tables = tables
        self.is_cut = False
        self.lose = 0
        self.calls: list[str] = []

    async def _do(self, name: str, member: Callable[[Transaction], T]) -> T:
        self.calls.append(name)
        await asyncio.sleep(LATENCY_S / 2)
        if self.is_cut:
            await asyncio.sleep(3_600)
        outcome: T | KelpieError = self.tables.run(member)
        await asyncio.sleep(LATENCY_S / 2)
        if self.lose > 0:
            self.lose -= 1
            raise StoreError("the answer was lost")
        if isinstance(outcome, KelpieError):
            raise outcome
        return outcome

    async def join(self, node: NodeRow) -> None:
        await self._do("join", partial(rows.join, node=node))

    async def renew(self, session: str) -> int:
        return await self._do("renew", partial(rows.renew, session=session))

    async def set_node_state(self, session: str, state: NodeState) -> None:
        await self._do("set_node_state", partial(rows.set_state, session=session, state=state))

    async def cluster(self) -> ClusterView:
        return await self._do("cluster", lambda _: self.tables.view())

    async def session_ended(self, session: str) -> bool:
        living = (node.session for node in self.tables.view().nodes if not node.ended_ms)
        return session not in living

    async def claim(self, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
        return await self._do("claim", partial(rows.claim, session=session, shards=shards))

    async def release_shards(self, session: str, shards: Sequence[ShardGrant]) -> None:
        await self._do("release", partial(rows.release, session=session, shards=shards))

    async def end_session(self, session: str, renewals: int | None, *, now_ms: int) -> bool:
        member = partial(rows.end, session=session, renewals=renewals, now_ms=now_ms)
        return await self._do("end", member)

    async def cordon(self, name: str, *, is_cordoned: bool, is_draining: bool) -> None:
        member = partial(rows.cordon, name=name, is_cordoned=is_cordoned, is_draining=is_draining)
        await self._do("cordon", member)

    async def pin(self, shard: int, name: str) -> None:
        await self._do("pin", partial(rows.pin, shard=shard, name=name))


class Machine:
    """One node with everything around it."""

    def __init__(self, cluster: Cluster, name: str, *, rate_ppm: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.cluster = cluster
        self.store = Store(cluster.tables)
        self.machine_clock = MachineClock(
            lambda: round(loop.time() * NANOSECONDS_PER_SECOND), rate_ppm=rate_ppm
        )
        self.clock = SimulatedClock(self.machine_clock)
        self.telemetry = RecordedTelemetry()
        self.supervisor = Supervisor(clock=self.clock, telemetry=self.telemetry)
        self.ownership = Ownership()
        self.handed: list[frozenset[int]] = []
        self.has_bug = False
        self.is_dead = False
        self.node = ClusterNode(
            NodeConfig(name=name, address=f"{name}:1", ttl_ms=round(TTL_S * 1000)),
            store=self.store,
            clock=self.clock,
            rng=SeededRng(f"{name}/{len(cluster.machines)}"),
            ownership=self.ownership,
            supervisor=self.supervisor,
            telemetry=self.telemetry,
            hand_over=self.hand_over,
            hint=cluster.hint,
        )
        cluster.machines.append(self)

    async def hand_over(self, shards: frozenset[int]) -> None:
        assert all(self.ownership.owns(shard) for shard in shards), "owned while it comes to rest"
        await asyncio.sleep(HAND_OVER_S)
        if self.has_bug:
            raise ZeroDivisionError("a bug")
        self.handed.append(shards)

    @property
    def shards(self) -> frozenset[int]:
        return frozenset(grant.shard for grant in self.ownership.grants())

    @property
    def answers(self) -> bool:
        return self.clock.boot_ns() < self.ownership.until_ns

    async def start(self) -> None:
        await self.node.start()
        self.node.ready()

    async def die(self) -> None:
        """Stop as a killed process does: without a word to the store."""
        self.is_dead = True
        await self.supervisor.close()


class SeededRng:
    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


class Cluster:
    """The tables, and every machine that ever was."""

    def __init__(self, *, shards: int = 32) -> None:
        self.tables = ClusterTables(sqlite3.connect(":memory:", isolation_level=None), shards)
        self.machines: list[Machine] = []
        self.hints = True

    def hint(self, addresses: frozenset[str]) -> None:
        for machine in self.machines if self.hints else ():
            if f"{machine.name}:1" in addresses:
                machine.node.look_soon()

    def machine(self, name: str, *, rate_ppm: int = 0) -> Machine:
        return Machine(self, name, rate_ppm=rate_ppm)

    async def started(self, *names: str) -> list[Machine]:
        machines = [self.machine(name) for name in names]
        for machine in machines:
            await machine.start()
        await self.settled()
        return machines

    async def settled(self, *, within_s: float = 60.0) -> None:
        """Wait until every shard is owned by the node that it is meant for."""
        await self.until(lambda: self.owners() == self.wished(), within_s=within_s)

    async def until(self, is_so: Callable[[], bool], *, within_s: float = 60.0) -> float:
        """Wait until something is so, look after the laws all the time, return how long it took."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for _ in range(round(within_s / STEP_S)):
            self.check()
            if is_so():
                return loop.time() - begun_s
            await asyncio.sleep(STEP_S)
        raise AssertionError(f"not so after {within_s} s: {self.owners()}")

    async def passed(self, seconds: float) -> None:
        """Let time pass, and look after the laws."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        await self.until(lambda: loop.time() >= end_s, within_s=seconds + 1)

    def owners(self) -> dict[int, str]:
        names = {node.session: node.name for node in self.tables.view().nodes}
        return {row.shard: names.get(row.session, "") for row in self.tables.view().shards}

    def wished(self) -> dict[int, str]:
        return place(self.tables.view())

    def check(self) -> None:
        """Nobody answers for a shard that another answers for; every machine is consistent."""
        answering = [each for each in self.machines if each.answers and not each.is_dead]
        claimed = [shard for machine in answering for shard in machine.shards]
        assert len(claimed) == len(set(claimed)), "two nodes answer for one shard"
        for machine in self.machines:
            machine.node.check_invariants()
