"""What befalls a cluster under load: each fault comes, is felt, and is healed again."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import TYPE_CHECKING

from tests.e2e.cluster.bed import LEASE_MS
from tests.e2e.cluster.writing import Findings, Writers
from tests.waiting import rest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.e2e.cluster.bed import Bed, BedNode

    Fault = Callable[[Bed, Writers, BedNode], Awaitable[None]]

FELT_WRITES = 40
"""How many writes must be acknowledged before and after something happens."""


async def kill(bed: Bed, writers: Writers, node: BedNode) -> None:
    """Kill a node, let the others take over, and start it again."""
    node.kill()
    await bed.owned_by(*_others(bed, node))
    await writers.progress(FELT_WRITES)
    await _return(bed, node)


async def kill_and_start(bed: Bed, writers: Writers, node: BedNode) -> None:
    """Kill a node and start it again before anybody can have taken over."""
    node.kill()
    await _return(bed, node)
    await writers.progress(FELT_WRITES)


async def stop_for_long(bed: Bed, writers: Writers, node: BedNode) -> None:
    """Stop a node until the others have its shards, and let it go on in the belief to own them."""
    node.stop()
    await bed.owned_by(*_others(bed, node))
    await writers.progress(FELT_WRITES)
    node.go_on()
    await writers.progress(FELT_WRITES)
    if node.server.process.status is None:
        await bed.owned_by(*bed.nodes)
    else:
        await _return(bed, node)


async def stop_for_short(bed: Bed, writers: Writers, node: BedNode) -> None:
    """Stop a node for less than its lease, as far as the machine's speed allows."""
    node.stop()
    await rest(LEASE_MS / 4_000)
    node.go_on()
    await writers.progress(FELT_WRITES)
    await bed.owned_by(*bed.nodes)


async def restart(bed: Bed, writers: Writers, node: BedNode) -> None:
    """Let a node hand everything over and end, and start it again."""
    await node.leave()
    await writers.progress(FELT_WRITES)
    await _return(bed, node)


async def crash_database(bed: Bed, writers: Writers, node: BedNode) -> None:
    """End the database without a word to anybody, and start it again."""
    await _restart_database(bed, writers, node, how=signal.SIGQUIT)


async def restart_database(bed: Bed, writers: Writers, node: BedNode) -> None:
    """End the database in good order, and start it again."""
    await _restart_database(bed, writers, node, how=signal.SIGINT)


async def take_database_away(bed: Bed, writers: Writers, node: BedNode) -> None:
    """End the database for longer than every lease, and start it again."""
    await _restart_database(bed, writers, node, how=signal.SIGQUIT, away_s=LEASE_MS / 500)


async def _restart_database(
    bed: Bed, writers: Writers, node: BedNode, *, how: signal.Signals, away_s: float = 0
) -> None:
    bed.database.stop(how)
    # The node is told of it by a request of its own, so that somebody felt it.
    assert await node.get("/v1/actors/Register/nobody") is None, "a database that is down answers"
    await rest(away_s)
    # From this thread: the server ends with the thread that started it.
    bed.database.start()
    await writers.progress(FELT_WRITES)
    for each in bed.nodes:
        assert each.is_up, f"{each.name} ended: {each.server.process.err}"
    await bed.owned_by(*bed.nodes)


def _others(bed: Bed, node: BedNode) -> list[BedNode]:
    return [each for each in bed.nodes if each is not node]


async def _return(bed: Bed, node: BedNode) -> None:
    await bed.start(node)
    await bed.owned_by(*bed.nodes)


FAULTS: tuple[Fault, ...] = (
    kill,
    kill_and_start,
    stop_for_long,
    stop_for_short,
    restart,
    crash_database,
    restart_database,
    take_database_away,
)


async def judge_under_load(
    bed: Bed, seed: int, happen: Callable[[Writers], Awaitable[None]]
) -> Findings:
    """Writes to a bed while things happen to it, and returns the judgement."""
    writers = Writers(bed.ports, random.Random(seed), seed)
    async with asyncio.TaskGroup() as group:
        group.create_task(writers.run())
        await writers.progress(FELT_WRITES)
        await happen(writers)
        await writers.progress(FELT_WRITES)
        writers.finish()
    return await writers.judge()
