"""A process whose files may not grow beyond a bound; prints what its commits come to.

Run as a program: ``filler.py STORE BYTES``. With BYTES 0 there is no bound but the disk's own.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
from pathlib import Path

from kelpie.core.errors import StoreError
from kelpie.storage.sqlite.store import SqliteStore
from tests.contract.store.world import FakeClock, Hand, SeededRng


async def main(path: Path, limit: int) -> None:
    store = await SqliteStore.open(path, clock=FakeClock(), rng=SeededRng(99))
    hand = Hand(store)
    await hand.turn(state=b"before")
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for state in (bytes(9_000_000), b"after"):
        try:
            await hand.turn(state=state)
            print("kept", flush=True)
        except StoreError as error:
            print(error.code, flush=True)
    loaded = await store.load(hand.actor)
    assert loaded is not None
    print(len(loaded.state), store.failure is not None, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
