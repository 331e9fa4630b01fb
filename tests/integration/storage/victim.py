"""A process that commits until it is killed, and prints each commit that was acknowledged.

Run as a program: ``victim.py STORE [ACTORS]``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kelpie.storage.records import AuditAppend, EventAppend, KvPut, OutboxRow
from kelpie.storage.sqlite.store import SqliteStore
from tests.contract.store.world import FakeClock, Hand, SeededRng


async def commit_forever(store: SqliteStore, number: int) -> None:
    hand = Hand(store, f"victim-{number}")
    while True:
        turn = b"%d" % (hand.version + 1)
        await hand.turn(
            state=turn,
            kv=(KvPut("turn", turn),),
            events=(EventAppend("turn", turn),),
            sends=(OutboxRow(sender=hand.actor, receiver=hand.actor, body=turn),),
            audit=(AuditAppend("turn", "victim", turn),),
        )
        print(number, hand.version, flush=True)


async def main(path: Path, actors: int) -> None:
    store = await SqliteStore.open(path, clock=FakeClock(), rng=SeededRng(99), address="unix:/v")
    print("open", flush=True)
    async with asyncio.TaskGroup() as group:
        for number in range(actors):
            group.create_task(commit_forever(store, number))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
