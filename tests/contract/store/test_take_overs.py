"""Two nodes whose beliefs are often stale, against a model of who may write what.

Each step is one transaction of the store, or a few at once. Of a few at once, the outcomes and what
the store holds afterwards must be those of some order in which they might have come one by one.
"""

from __future__ import annotations

import asyncio
import random
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kelpie.core.errors import FencedError, KelpieError, SessionEndedError, VersionConflictError
from kelpie.storage.cluster import NodeRow
from kelpie.storage.records import CommitReceipt, EventAppend, ShardGrant
from tests.contract.store.world import NOW_MS, Hand, actor_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.contract.store.world import Engine, SharedStore

STEPS = 150
TOGETHER_MAX = 4
WEIGHTS = {"commit": 10, "claim": 4, "release": 1, "renew": 3, "end": 1}
KEYS = ("ada", "bob", "eve")
SHARDS = tuple(sorted({actor_id(key).shard for key in KEYS}))


@dataclass
class Model:
    """What the store should hold."""

    renewals: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    owners: dict[int, str] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    logs: dict[str, list[bytes]] = field(default_factory=lambda: {key: [] for key in KEYS})

    def claim(self, session: str, seen: list[ShardGrant]) -> object:
        if session in self.ended:
            return SessionEndedError
        free = [each for each in seen if not self.owners[each.shard]]
        taken = [each for each in free if self.epochs[each.shard] == each.epoch]
        for shard, epoch in taken:
            self.owners[shard], self.epochs[shard] = session, epoch + 1
        return [ShardGrant(shard, epoch + 1) for shard, epoch in taken]

    def release(self, session: str, grants: list[ShardGrant]) -> object:
        for shard, epoch in grants:
            if (self.owners[shard], self.epochs[shard]) == (session, epoch):
                self.owners[shard], self.epochs[shard] = "", epoch + 1
        return None

    def renew(self, session: str) -> object:
        if session in self.ended:
            return SessionEndedError
        self.renewals[session] += 1
        return self.renewals[session]

    def end(self, session: str, renewals: int | None) -> object:
        if session in self.ended:
            return True
        if renewals is not None and renewals != self.renewals[session]:
            return False
        self.ended.add(session)
        for shard, owner in self.owners.items():
            if owner == session:
                self.owners[shard] = ""
                self.epochs[shard] += 1
        return True

    def commit(self, key: str, epoch: int, version: int, body: bytes) -> object:
        if self.epochs[actor_id(key).shard] != epoch:
            return FencedError
        if len(self.logs[key]) != version:
            return VersionConflictError
        self.logs[key].append(body)
        return version + 1


class Step(NamedTuple):
    """One transaction: what it does to the store, and to a model."""

    name: str
    real: Callable[[], Awaitable[object]]
    expected: Callable[[Model], object]


@dataclass
class Beliefs:
    """What one node thinks it knows."""

    name: str
    store: SharedStore
    session: str = ""
    epochs: dict[int, int] = field(default_factory=dict)
    view: dict[int, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))


class Drill:
    """Draws steps for two nodes and compares each outcome with the model's."""

    def __init__(self, nodes: list[Beliefs], seed: int) -> None:
        self.nodes = nodes
        self.random = random.Random(seed)
        self.model = Model()
        self.counts: dict[str, int] = {}
        self.number = 0

    async def begin(self, node: Beliefs) -> None:
        """Join with a session that nobody had."""
        self.number += 1
        node.session = f"session-{node.name}-{self.number}"
        place = f"{node.name}:1"
        row = NodeRow(node.session, node.name, place, "running", 0, 5_000, False, False, NOW_MS, 0)
        await node.store.join(row)
        self.model.renewals[node.session] = 0
        node.epochs = {}

    async def look(self, node: Beliefs) -> None:
        """Let a node see how things are now."""
        view = await node.store.cluster()
        node.view = {shard: view.shards[shard].epoch for shard in SHARDS}
        node.counters = {each.session: each.renewals for each in view.nodes if not each.ended_ms}
        for key in KEYS:
            loaded = await node.store.load(actor_id(key))
            node.versions[key] = loaded.version if loaded else 0

    def draw(self, node: Beliefs) -> Step:
        """Return a transaction that the node might want, by what it believes."""
        (kind,) = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if kind == "commit":
            return self.draw_commit(node)
        session, store = node.session, node.store
        if kind == "claim":
            seen = [ShardGrant(shard, epoch) for shard, epoch in node.view.items()]
            seen = self.random.sample(seen, self.random.randint(1, len(seen)))

            known = node.epochs

            async def claim() -> object:
                taken = sorted(await store.claim(session, seen))
                # A claim that comes twice may be told twice what it took.
                fresh = [each for each in taken if known.get(each.shard) != each.epoch]
                known.update(fresh)
                return fresh

            return Step(kind, claim, lambda model: _sorted(model.claim(session, seen)))
        if kind == "release":
            grants = [ShardGrant(*each) for each in node.epochs.items()][:1]
            return Step(
                kind,
                lambda: store.release_shards(session, grants),
                lambda model: model.release(session, grants),
            )
        if kind == "renew":
            return Step(kind, lambda: store.renew(session), lambda model: model.renew(session))
        other = self.random.choice(self.nodes).session
        seen_renewals = node.counters.get(other, 0)
        return Step(
            kind,
            lambda: store.end_session(other, seen_renewals, now_ms=NOW_MS),
            lambda model: model.end(other, seen_renewals),
        )

    def draw_commit(self, node: Beliefs) -> Step:
        key = self.random.choice(KEYS)
        self.number += 1
        body = b"%d" % self.number
        epoch = node.epochs.get(actor_id(key).shard, 0)
        version = node.versions[key]
        hand = Hand(node.store, key)
        hand.version = version

        async def commit() -> object:
            event = (EventAppend("e", body),)
            receipt = await node.store.commit(hand.prepare(epoch=epoch, state=body, events=event))
            assert isinstance(receipt, CommitReceipt)
            node.versions[key] = max(node.versions[key], receipt.version)
            return receipt.version

        return Step("commit", commit, lambda model: model.commit(key, epoch, version, body))

    async def step(self) -> None:
        """Run one transaction, or a few at once, and find the order that explains them."""
        for node in self.nodes:
            if node.session in self.model.ended and self.random.random() < 0.3:
                await self.begin(node)
            if self.random.random() < 0.4:
                await self.look(node)
        count = self.random.choice((1, 1, 2, TOGETHER_MAX))
        steps = [self.draw(self.random.choice(self.nodes)) for _ in range(count)]
        outcomes = await asyncio.gather(*(_outcome(step) for step in steps))
        held = await self.read()
        for order in permutations(range(count)):
            model = deepcopy(self.model)
            told = {index: steps[index].expected(model) for index in order}
            if [told[index] for index in range(count)] == outcomes and _held(model) == held:
                self.model = model
                break
        else:
            names = [step.name for step in steps]
            pytest.fail(f"no order of {names} explains {outcomes} and {held} after {self.model}")
        for step, outcome in zip(steps, outcomes, strict=True):
            refusal = outcome.__name__ if isinstance(outcome, type) else "done"
            self.counts[f"{step.name} {refusal}"] = self.counts.get(f"{step.name} {refusal}", 0) + 1

    async def read(self) -> object:
        """Return what the store holds, as `_held` returns what the model does."""
        store = self.random.choice(self.nodes).store
        view = await store.cluster()
        shards = {shard: (view.shards[shard].session, view.shards[shard].epoch) for shard in SHARDS}
        logs = {key: [e.body for e in await store.events(actor_id(key), 0, 999)] for key in KEYS}
        for key in KEYS:
            loaded = await store.load(actor_id(key))
            assert (loaded.version if loaded else 0) == len(logs[key])
            assert loaded is None or loaded.state == logs[key][-1]
        return shards, logs


async def _outcome(step: Step) -> object:
    try:
        return await step.real()
    except KelpieError as error:
        return type(error)


def _sorted(outcome: object) -> object:
    return sorted(outcome) if isinstance(outcome, list) else outcome


def _held(model: Model) -> object:
    shards = {shard: (model.owners[shard], model.epochs[shard]) for shard in SHARDS}
    return shards, model.logs


@pytest.mark.requirement("K-13", "K-16", "K-17")
@pytest.mark.parametrize("seed", range(3))
async def test_commits_and_take_overs_of_two_nodes_agree_with_a_model(
    engine: Engine, seed: int
) -> None:
    async with engine.shared() as first, engine.beside(first) as second:
        drill = Drill([Beliefs("a", first), Beliefs("b", second)], seed)
        view = await first.cluster()
        drill.model.owners = {shard: view.shards[shard].session for shard in SHARDS}
        drill.model.epochs = {shard: view.shards[shard].epoch for shard in SHARDS}
        for node in drill.nodes:
            await drill.begin(node)
            await drill.look(node)
        for _ in range(STEPS):
            await drill.step()
        assert drill.counts.get("commit done", 0) > STEPS // 20, drill.counts
        assert drill.counts.get("commit FencedError", 0) > STEPS // 20, drill.counts
        assert drill.counts.get("claim done", 0) > STEPS // 20, drill.counts
