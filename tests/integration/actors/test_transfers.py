"""Money that moves between actors while the store dies under them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from examples.bank import Account
from kelpie import Runtime
from kelpie.core.errors import KelpieError
from kelpie.storage.sqlite.store import SqliteStore
from tests.waiting import eventually_async

NAMES = [f"a{i}" for i in range(6)]
EACH = 1_000


async def crash_while_transferring(path: Path, dice: random.Random) -> int:
    """Moves money about until the store is abandoned at a drawn moment; returns what was acked."""
    acked = 0
    async with Runtime.open(path, actors=[Account]) as runtime:
        store = runtime._store
        assert isinstance(store, SqliteStore)

        async def keep_moving() -> None:
            nonlocal acked
            while True:
                sender, receiver = dice.sample(NAMES, 2)
                try:
                    await runtime.ref(Account, sender).transfer(receiver, dice.randint(1, 50))
                    acked += 1
                except KelpieError:
                    await asyncio.sleep(0)
                if store._opened is None:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(keep_moving())
            for _ in range(dice.randint(1, 120)):
                await asyncio.sleep(0)
            store.abandon()
    return acked


@pytest.mark.requirement("ACTOR-TRANSFER-CONSERVES")
@pytest.mark.parametrize("seed", range(6))
async def test_money_is_neither_lost_nor_made_across_crashes(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    path = tmp_path / "bank.db"
    async with Runtime.open(path, actors=[Account]) as runtime:
        for name in NAMES:
            await runtime.ref(Account, name).deposit(EACH)
    acked = sum([await crash_while_transferring(path, dice) for _ in range(4)])
    async with Runtime.open(path, actors=[Account]) as runtime:

        async def delivered() -> bool:
            return (await runtime._store.stats()).outbox == 0

        await eventually_async(delivered, within_s=10, what="what was sent arrives")
        balances = [await runtime.ref(Account, name).balance() for name in NAMES]
        events = [
            await runtime.events(runtime.ref(Account, n), after=0, limit=1_000) for n in NAMES
        ]
        sent = sum(each.kind == "account.sent" for page in events for each in page)
        received = sum(each.kind == "account.received" for page in events for each in page)
    assert sum(balances) == EACH * len(NAMES)
    assert min(balances) >= 0
    assert sent == received
    assert sent >= acked > 0
