"""What the store's benchmark needs around it: ports, a store of a million actors, a bare peer.

The fill writes straight into the tables: it stands for months of work and proves nothing about
the product. The peer is the least that could do the same job: SQLite, one queue, one transaction
for whatever gathered, and a future for everybody who waits.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kelpie.core.digests import digest_bytes
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import COMMIT_BATCH_ROWS_MAX, WAL_CHECKPOINT_PAGES
from kelpie.storage.sqlite.engine import connect_writer
from kelpie.storage.sqlite.migrations import migrate

KIND = "counter"
REQUEST = digest_bytes(b"request")
REPLY = b"a reply of some bytes"
_UPDATE = (
    "UPDATE actors SET epoch = ?, version = ?, updated_ms = ?, checksum = ?, state = ?"
    " WHERE actor = ?"
)
_REPLY = "INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ACTOR = "INSERT INTO actors VALUES (?, ?, ?, 1, 1, 1, 1, 0, 0, 1, 0, ?, 0, ?)"


def actor_at(index: int) -> ActorId:
    """Return the actor of one index."""
    return ActorId(TENANT_DEFAULT, KIND, f"c{index}")


def fill_store(path: Path, *, actors: int, reminders: int, messages: int) -> None:
    """Make a store with so many actors at version 1, reminders far ahead and waiting messages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(connect_writer(path)) as connection:
        migrate(connection)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_ACTOR, _actor_rows(actors))
        connection.executemany(
            "INSERT INTO reminders VALUES (?, ?, 1, 'tick', ?, 1, ?, 0, x'')",
            (
                (TENANT_DEFAULT, str(actor_at(index)), actor_at(index).shard, 10**13 + index)
                for index in range(reminders)
            ),
        )
        connection.executemany(
            "INSERT INTO outbox VALUES (?, ?, 0, 1, ?, ?, 0, 0, '', 0, x'')",
            (
                (index + 1, TENANT_DEFAULT, str(actor_at(index)), str(actor_at(index + 1)))
                for index in range(messages)
            ),
        )
        connection.execute("UPDATE counters SET value = ? WHERE name = 'message'", (messages,))
        connection.execute("COMMIT")


def _actor_rows(count: int) -> Iterator[tuple[Any, ...]]:
    state = bytes(100)
    checksum = zlib.crc32(state)
    for index in range(count):
        actor = actor_at(index)
        yield (TENANT_DEFAULT, str(actor), actor.shard, checksum, state)


class BareLoop:
    """Group commit with nothing around it: no checks, no fences, no refusals, all on the loop."""

    def __init__(self, path: Path, *, actors: int) -> None:
        fill_store(path, actors=actors, reminders=0, messages=0)
        self._connection: sqlite3.Connection = connect_writer(path)
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_CHECKPOINT_PAGES}")
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[Any, Any, asyncio.Future[None]]] = deque()
        self._is_scheduled = False

    def commit(self, row: tuple[Any, ...], reply: tuple[Any, ...] | None) -> asyncio.Future[None]:
        """Queue one row of an actor, and one of a reply."""
        future = self._loop.create_future()
        self._queue.append((row, reply, future))
        self._schedule()
        return future

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        count = min(COMMIT_BATCH_ROWS_MAX, len(self._queue))
        batch = [self._queue.popleft() for _ in range(count)]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_UPDATE, [row for row, _, _ in batch])
        replies = [reply for _, reply, _ in batch if reply is not None]
        if replies:
            self._connection.executemany(_REPLY, replies)
        self._connection.execute("COMMIT")
        for _, _, future in batch:
            future.set_result(None)
        if self._queue:
            self._schedule()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


async def drive_bare(
    bare: BareLoop, index: int, *, turns: int, state: bytes, prefix: str | None = None
) -> list[float]:
    """Commit ``turns`` times for one actor and return the latencies in ms.

    With a ``prefix`` each commit keeps a reply under a key of its own.
    """
    actor = str(actor_at(index))
    latencies_ms: list[float] = []
    for turn in range(turns):
        began = time.perf_counter()
        now_ms = time.time_ns() // 1_000_000
        reply = None
        if prefix is not None:
            names = (TENANT_DEFAULT, actor, 1, "m", f"{prefix}-{turn}", 1, 1)
            reply = (*names, REQUEST, now_ms + 86_400_000, zlib.crc32(REPLY), REPLY)
        await bare.commit((1, turn, now_ms, zlib.crc32(state), state, actor), reply)
        latencies_ms.append((time.perf_counter() - began) * 1_000)
    return latencies_ms
