"""A cluster: nodes that share a database count for clients, while nodes, links and clocks fail.

Every request goes to some node, whoever owns the counter; each addition is asked for until it is
answered, now and then at another node under the same key. At the end every shard is owned again
within two lease times, each counter holds every acknowledged amount exactly once, and all answers
together are what one counter after the other could have said.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from functools import partial
from typing import Any, Final

from kelpie.core.limits import SHARD_COUNT
from kelpie.ports.network import NetworkError
from kelpie.sim.client import ATTEMPTS_MAX, RETRY_S, GaveUpError, is_passing
from kelpie.sim.clock import NANOSECONDS_PER_MS
from kelpie.sim.database import serve_database
from kelpie.sim.edge import HttpAnswer
from kelpie.sim.history import History
from kelpie.sim.host import SimulatedHost
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.scenarios.counters import SimCounter
from kelpie.sim.specifications import CounterSpecification
from kelpie.sim.view import View
from kelpie.sim.witness import check_versions
from kelpie.sim.world import SimulatedWorld
from kelpie.storage.cluster import ClusterView

DATABASE: Final = "db"
COUNTERS: Final = 4
AMOUNT_MAX: Final = 9
ROUNDS: Final = 2
PAUSE_S_MAX: Final = 2.0
READ_SHARE: Final = 0.4
LEASE_TTL_MS: Final = 2_000
OWNED_AGAIN_S: Final = 2 * LEASE_TTL_MS / 1_000
REST_S: Final = 0.01
DRAINS: Final = 0.5
DRAIN_AFTER_S_MAX: Final = 12.0


class ClusterScenario:
    """Two or three nodes and a database, each on a machine of its own."""

    name = "cluster"

    def __init__(self) -> None:
        self._history = History()
        self._versions: dict[tuple[str, str], int] = {}
        self._commits: dict[str, list[int]] = {}
        self._totals: Counter[str] = Counter()
        self._additions: Counter[str] = Counter()

    async def run(self, world: SimulatedWorld) -> None:
        """Count, heal, compare."""
        world.always("commits-are-noted", self._note)
        world.always("ended-leases-have-run-out", partial(_judge_lease, world))
        database = world.add_host(DATABASE, program=serve_database)
        nodes = [add_node(world, database, number) for number in range(1, self._size(world) + 1)]
        await world.unleash()
        async with asyncio.TaskGroup() as clients:
            clients.create_task(self._restart(world, nodes), name="operator")
            for number in range(world.config.clients):
                work = self._count(world, nodes, number)
                clients.create_task(work, name=f"client-{number}")
        await settle_cluster(world, database, nodes)
        for node in nodes:
            for counter in range(COUNTERS):
                await self._compare(world, node, f"c{counter}")
        self._judge(world)

    def _size(self, world: SimulatedWorld) -> int:
        return 2 + world.config.hosts % 2

    def _note(self, view: View) -> None:
        """Remember which version each addition became."""
        if view.last is None:
            return
        commit = view.last.commit
        version = commit.expected_version + 1
        self._commits.setdefault(commit.actor.key, []).append(version)
        if commit.reply is not None:
            self._versions[commit.actor.key, commit.reply.key] = version

    def _judge(self, world: SimulatedWorld) -> None:
        """Hold every answer against the commits, and against every order that time allows."""
        operations = self._history.operations()
        by_version = check_versions(operations, CounterSpecification(), commits=self._commits)
        if by_version.judgement is not Judgement.LINEARIZABLE:
            world.fail("answers-follow-the-commits", str(by_version))
        by_search = check_linearizability(operations, CounterSpecification())
        if by_search.judgement is Judgement.VIOLATION:
            world.fail("answers-are-linearizable", str(by_search))

    async def _restart(self, world: SimulatedWorld, nodes: list[SimulatedHost]) -> None:
        """Stop a node as an operator does, which hands its shards over; the watchdog starts it."""
        rng = world.stream("operator")
        if rng.random() >= DRAINS:
            return
        await asyncio.sleep(rng.random() * DRAIN_AFTER_S_MAX)
        node = rng.choice(nodes)
        if node.is_serving:
            await node.stop()
            world.sometimes("a node left in order")

    async def _count(self, world: SimulatedWorld, nodes: list[SimulatedHost], number: int) -> None:
        rng, client = world.stream(f"client:{number}"), f"client-{number}"
        for turn in range(ROUNDS * world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            counter = f"c{rng.randrange(COUNTERS)}"
            if rng.random() < READ_SHARE:
                await self._read(world, nodes, rng, counter, client=client)
            else:
                await self._add(world, nodes, rng, counter, client=client, turn=turn)

    async def _add(
        self,
        world: SimulatedWorld,
        nodes: list[SimulatedHost],
        rng: random.Random,
        counter: str,
        *,
        client: str,
        turn: int,
    ) -> None:
        amount, key = rng.randrange(1, AMOUNT_MAX + 1), f"{client}-{turn}"
        token = self._history.call(client, counter, "add", amount, at_ns=world.loop.now_ns)
        answer = await insist_anywhere(nodes, rng, counter, "add", {"amount": amount}, key=key)
        version = self._versions.get((counter, key))
        total = answer.json()["result"]
        self._history.returned(token, total, at_ns=world.loop.now_ns, version=version)
        self._totals[counter] += amount
        self._additions[counter] += 1
        if rng.random() < 0.3:
            again = await insist_anywhere(nodes, rng, counter, "add", {"amount": amount}, key=key)
            assert again.body == answer.body, f"{again.body!r} after {answer.body!r}"
            world.sometimes("a key was used again")

    async def _compare(self, world: SimulatedWorld, node: SimulatedHost, counter: str) -> None:
        rng = world.stream(f"reader:{node.name}:{counter}")
        found = await self._read(world, [node], rng, counter, client="reader")
        expected = [self._totals[counter], self._additions[counter]]
        assert found == expected, f"{counter} is {found} at {node.name}, told were {expected}"

    async def _read(
        self,
        world: SimulatedWorld,
        nodes: list[SimulatedHost],
        rng: random.Random,
        counter: str,
        *,
        client: str,
    ) -> list[int]:
        """Return a counter's total and how many additions are in it."""
        token = self._history.call(client, counter, "get", at_ns=world.loop.now_ns)
        answer = await insist_anywhere(nodes, rng, counter, "show", {}, key=None)
        total, additions = answer.json()["result"]
        # Every addition is one commit, so their number is the version that was read.
        self._history.returned(token, total, at_ns=world.loop.now_ns, version=additions)
        return [total, additions]


def _judge_lease(world: SimulatedWorld, view: View) -> str | None:
    """Return what is wrong if a session is ended whose node still answers by its own clock."""
    seen = view.lease
    if seen is None or seen.kind != "ended":
        return None
    for host in world.hosts.values():
        if host.database is None or not host.is_serving:
            continue
        node = host.service.node
        ownership, status = node.runtime.ownership, node.membership.node.status
        now_ns = host.clock.monotonic_ns()
        if status.session == seen.session and ownership.grants() and now_ns < ownership.until_ns:
            left_ms = (ownership.until_ns - now_ns) // NANOSECONDS_PER_MS
            return f"{seen.session} was ended, and {host.name} may answer for {left_ms:,} ms"
    return None


def add_node(world: SimulatedWorld, database: SimulatedHost, number: int) -> SimulatedHost:
    """Return a machine for a node of the cluster."""
    name = f"n{number}"
    host = world.add_host(
        name,
        actors=(SimCounter,),
        database=database,
        flags={
            "store.url": f"postgresql://kelpie@{DATABASE}/kelpie",
            "node": name,
            "cluster.listen": f"{name}:7000",
            "cluster.secret": "env:SIM_SECRET",
            "cluster.lease_ttl_ms": LEASE_TTL_MS,
        },
    )
    assert host.store_name == database.name, "commits are seen where they are written"
    return host


async def insist_anywhere(
    nodes: list[SimulatedHost],
    rng: random.Random,
    counter: str,
    method: str,
    body: dict[str, Any],
    *,
    key: str | None,
) -> HttpAnswer:
    """Return the first final answer of any node, asking another one each time there is none.

    Raises:
        GaveUpError: There was none.
    """
    target = f"/v1/actors/{SimCounter.actor_type}/{counter}/{method}"
    for _ in range(ATTEMPTS_MAX):
        try:
            answer = await rng.choice(nodes).request("POST", target, body, key=key)
        except NetworkError:
            answer = None
        if answer is not None and not is_passing(answer):
            assert answer.status == 200, answer.body
            return answer
        await asyncio.sleep(RETRY_S)
    raise GaveUpError(f"{target} has no answer")


async def settle_cluster(
    world: SimulatedWorld, database: SimulatedHost, nodes: list[SimulatedHost]
) -> None:
    """Heal the world; every shard is owned again in time, and the database is sound."""
    await world.heal()
    view: list[ClusterView] = []

    async def is_owned() -> bool:
        view[:] = [await database.service.store.cluster()]
        return _is_whole(view[0], nodes)

    await world.eventually("every shard is owned", is_owned, within_s=OWNED_AGAIN_S)
    assert len({row.shard for row in view[0].shards}) == SHARD_COUNT, "a shard is missing"
    await _require_sound(database, nodes)
    while database.is_writing:  # noqa: ASYNC110  what writes is the machine, not this task
        await asyncio.sleep(REST_S)
    database.look(is_rest=True)


def _is_whole(view: ClusterView, nodes: list[SimulatedHost]) -> bool:
    """Whether every shard is some living session's whose node says that it owns it too."""
    owned = {
        (shard, epoch, host.service.node.membership.node.status.session)
        for host in nodes
        if host.is_serving
        for shard, epoch in host.service.node.runtime.ownership.grants()
    }
    return all((row.shard, row.epoch, row.session) in owned for row in view.shards)


async def _require_sound(database: SimulatedHost, nodes: list[SimulatedHost]) -> None:
    report = await database.service.store.check()
    assert report.is_sound, f"{database.name}: {report.problems}"
    for host in nodes:
        node = host.service.node
        node.runtime.check_invariants()
        node.dispatcher.check_invariants()
        node.membership.node.check_invariants()
