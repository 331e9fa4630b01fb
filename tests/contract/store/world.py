"""What the suites of the store share: a clock, a source of randomness, and a hand that commits."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from kelpie.core.digests import digest_bytes
from kelpie.core.ids import TENANT_DEFAULT, ActorId, Tenant
from kelpie.storage.cluster import ClusterStore
from kelpie.storage.protocol import Store
from kelpie.storage.records import Commit, CommitReceipt, EffectRow, EffectState
from kelpie.storage.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

NOW_MS = 1_800_000_000_000


class FakeClock:
    """Time that moves when a test says so; boot time moves a microsecond at every look."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.wall_ms = now_ms
        self._boot_ns = 0

    def now_ms(self) -> int:
        return self.wall_ms

    def boot_ns(self) -> int:
        self._boot_ns += 1_000
        return self._boot_ns

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("the store never sleeps")


class SeededRng:
    """Reproducible bytes."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


class SharedStore(Store, ClusterStore, Protocol):
    """A store that nodes join."""


class Engine(Protocol):
    """One engine with one empty store, which may be opened again and again."""

    clock: FakeClock

    def opened(self) -> AbstractAsyncContextManager[Store]:
        """Open the store as its only node, which owns every shard, and close it at the end."""
        ...

    def shared(self) -> AbstractAsyncContextManager[SharedStore]:
        """Open the store for nodes that join, and close it at the end."""
        ...

    async def discard(self) -> None:
        """Give up what the machine lent; the engine is not used again."""
        ...

    def beside(self, store: SharedStore) -> AbstractAsyncContextManager[SharedStore]:
        """Open the store for another node beside ``store``: itself, where it has one holder."""
        ...


class SqliteEngine:
    """The embedded engine over one file."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.rng = SeededRng()
        self.path = folder / "store" / "kelpie.db"

    async def open(self, **options: Any) -> SqliteStore:
        return await SqliteStore.open(self.path, clock=self.clock, rng=self.rng, **options)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[SqliteStore]:
        store = await self.open()
        try:
            yield store
        finally:
            store.check_invariants()
            await store.close()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[SqliteStore]:
        store = await self.open(node="")
        try:
            yield store
        finally:
            store.check_invariants()
            await store.close()

    @asynccontextmanager
    async def beside(self, store: SharedStore) -> AsyncIterator[SharedStore]:
        yield store

    async def discard(self) -> None:
        """Nothing was lent: the folder is the test's."""


def actor_id(key: str, *, tenant: str = TENANT_DEFAULT, kind: str = "agent") -> ActorId:
    return ActorId(Tenant(tenant), kind, key)


def effect(
    actor: ActorId, effect_id: str = "effect-1", state: EffectState = "waiting"
) -> EffectRow:
    return EffectRow(
        effect_id=effect_id,
        actor=actor,
        kind="command.run",
        state=state,
        digest=digest_bytes(b"wish"),
        attempt=1,
        session="session-a",
        due_ms=NOW_MS + 5,
        created_ms=NOW_MS,
        updated_ms=NOW_MS + 1,
        body=b"effect body",
    )


class Hand:
    """Commits turns of one actor, and remembers the version that the next turn expects."""

    def __init__(self, store: Store, key: str = "ada", *, tenant: str = TENANT_DEFAULT) -> None:
        self.store = store
        self.actor = actor_id(key, tenant=tenant)
        self.version = 0
        self.incarnation = 1
        self.now_ms = NOW_MS

    def prepare(self, **changes: Any) -> Commit:
        """Return the next turn's commit without submitting it."""
        shard = self.actor.shard
        grants = {grant.shard: grant.epoch for grant in self.store.grants()}
        fields: dict[str, Any] = {
            "actor": self.actor,
            "shard": shard,
            "epoch": grants.get(shard, 0),
            "incarnation": self.incarnation,
            "expected_version": self.version,
            "schema_version": 1,
            "now_ms": self.now_ms,
        }
        return Commit(**(fields | changes))

    async def turn(self, **changes: Any) -> CommitReceipt:
        """Commit the next turn; it counts only if it succeeds."""
        receipt = await self.store.commit(self.prepare(**changes))
        self.version = receipt.version
        return receipt

    async def delete(self) -> None:
        """Delete the actor; the next turn belongs to its next incarnation."""
        await self.turn(tombstone=True)
        self.version = 0
        self.incarnation += 1
