"""A loop that runs executors inline, as a simulator's does, drives the store without a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from kelpie.storage.records import EventAppend
from tests.contract.store.world import Hand, SqliteEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class InlineLoop(asyncio.SelectorEventLoop):
    """Runs what is meant for an executor at once, on its own thread."""

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        future.set_result(func(*args))
        return future


async def live(engine: SqliteEngine, backup: Path) -> list[tuple[int, int]]:
    async with engine.opened() as store:
        hands = [Hand(store, f"a{number}") for number in range(5)]
        for _ in range(3):
            await asyncio.gather(*(h.turn(events=(EventAppend("e", b""),)) for h in hands))
        await hands[0].delete()
        await store.backup(backup)
        assert (await store.check()).is_sound
        assert (await store.stats()).actors == 4
        events = await store.events_tail(hands[0].actor.tenant, 0, 99)
    assert threading.active_count() == 1
    return [(event.position, event.sequence) for event in events]


def test_the_store_needs_no_thread_of_its_own_and_repeats_itself(tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        folder = tmp_path / name
        with asyncio.Runner(loop_factory=InlineLoop) as runner:
            runs.append(runner.run(live(SqliteEngine(folder), folder / "backup")))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 12
