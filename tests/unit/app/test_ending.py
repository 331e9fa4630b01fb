"""When a server ends: when it is asked to, and when its store writes nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from kelpie.app.process import wait_for_end
from kelpie.core.errors import CommitUnknownError, KelpieError
from kelpie.sim.loop import SimulatedLoop


def simulate(work: Coroutine[None, None, None]) -> float:
    loop = SimulatedLoop()
    loop.run_until_complete(work)
    seconds = loop.time()
    loop.abandon()
    return seconds


@pytest.mark.requirement("STORE-STOPPED-ENDS")
def test_a_server_ends_soon_after_its_store_stopped() -> None:
    failure = CommitUnknownError("the disk failed while committing")
    found: list[KelpieError | None] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + 5
        found.append(
            await wait_for_end(asyncio.Event(), lambda: failure if loop.time() >= due_s else None)
        )

    assert 5 <= simulate(work()) <= 6
    assert found == [failure]


def test_a_server_that_is_asked_to_end_ends_without_a_failure() -> None:
    found: list[KelpieError | None] = []

    async def work() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(3.5, stop.set)
        found.append(await wait_for_end(stop, lambda: None))

    assert simulate(work()) == 3.5
    assert found == [None]
