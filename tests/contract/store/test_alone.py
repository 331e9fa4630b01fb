"""A node that is alone ends the dead and nobody else, and owns what is free."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kelpie.app.alone import end_silent_sessions, keep_lease, take_over
from kelpie.core.errors import ConflictError
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.cluster import NodeRow
from kelpie.storage.records import ShardGrant
from tests.contract.store.world import NOW_MS
from tests.waiting import eventually_async

if TYPE_CHECKING:
    from kelpie.storage.cluster import ClusterStore
    from tests.contract.store.world import Engine

NS_PER_S = 1_000_000_000


def node(name: str, *, ttl_ms: int = 5_000) -> NodeRow:
    place = f"{name}:1"
    return NodeRow(f"session-{name}", name, place, "running", 0, ttl_ms, False, False, NOW_MS, 0)


class SleptClock:
    """Time passes only by sleeping, and while it does the living renew."""

    def __init__(self, store: ClusterStore, *living: str, sleeps_max: int = 1_000) -> None:
        self._store = store
        self._living = living
        self._left = sleeps_max
        self._boot_ns = 0

    @property
    def slept_s(self) -> float:
        return self._boot_ns / NS_PER_S

    def now_ms(self) -> int:
        return NOW_MS

    def boot_ns(self) -> int:
        return self._boot_ns

    async def sleep(self, seconds: float) -> None:
        assert self._left > 0, "nobody sleeps that often"
        self._left -= 1
        self._boot_ns += int(seconds * NS_PER_S)
        for session in self._living:
            await self._store.renew(session)
        await asyncio.sleep(0)


async def test_a_dead_session_is_ended_after_its_lease_and_a_margin_and_not_before(
    engine: Engine,
) -> None:
    async with engine.shared() as store:
        await store.join(node("dead"))
        view = await store.cluster()
        await store.claim("session-dead", [ShardGrant(0, view.shards[0].epoch)])
        clock = SleptClock(store)
        taken = await take_over(store, node("mine"), clock=clock)
        assert len(taken) == SHARD_COUNT
        assert await store.session_ended("session-dead")
        assert 5.5 <= clock.slept_s < 6.5


async def test_a_living_session_keeps_its_shards_and_holds_nobody_up(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("alive"))
        view = await store.cluster()
        (kept,) = await store.claim("session-alive", [ShardGrant(3, view.shards[3].epoch)])
        clock = SleptClock(store, "session-alive")
        taken = await take_over(store, node("mine"), clock=clock)
        assert len(taken) == SHARD_COUNT - 1
        assert kept.shard not in {grant.shard for grant in taken}
        assert not await store.session_ended("session-alive")
        assert clock.slept_s < 5.5, "it was seen alive before its lease could end"


async def test_an_earlier_life_of_a_node_is_not_waited_for(engine: Engine) -> None:
    async with engine.shared() as store:
        first = node("mine")
        await store.join(first)
        clock = SleptClock(store, sleeps_max=0)
        second = first._replace(session="session-second")
        taken = await take_over(store, second, clock=clock, earlier=first.session)
        assert len(taken) == SHARD_COUNT
        assert await store.session_ended(first.session)


async def test_a_living_node_of_the_same_name_is_not_pushed_aside(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("mine"))
        clock = SleptClock(store, "session-mine")
        second = node("mine")._replace(session="session-second")
        with pytest.raises(ConflictError):
            await take_over(store, second, clock=clock, earlier="session-of-long-ago")
        assert not await store.session_ended("session-mine")


async def test_a_lease_is_renewed_until_its_session_has_ended(engine: Engine) -> None:
    async with engine.shared() as store:
        row = node("mine")
        await store.join(row)
        renewing = asyncio.ensure_future(keep_lease(store, row, clock=SleptClock(store)))

        async def was_renewed() -> bool:
            return (await store.cluster()).nodes[0].renewals >= 3

        await eventually_async(was_renewed, within_s=20, what="three renewals")
        await end_silent_sessions(store, clock=SleptClock(store, row.session))
        assert not renewing.done(), "what renews is alive"
        await store.end_session(row.session, None, now_ms=NOW_MS)
        await renewing
        assert await store.session_ended(row.session)
