"""The shared engine for the suite: a database of its own on this process's server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kelpie.storage.postgres.store import PostgresStore
from tests.contract.store.world import FakeClock, SeededRng
from tests.postgres import STORE_DATABASES, shared_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.contract.store.world import SharedStore


class PostgresEngine:
    """One database, made when it is opened first."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.rng = SeededRng()
        self.blobs = folder / "blobs"
        self.server = shared_server()
        self.database = ""

    async def open(self, **options: Any) -> PostgresStore:
        """Open the store as a node that owns nothing yet."""
        if not self.database:
            self.database = await STORE_DATABASES.take(self.server)
        return await PostgresStore.open(
            self.server.dsn(self.database),
            clock=options.pop("clock", self.clock),
            rng=self.rng,
            blobs_path=self.blobs,
            **options,
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PostgresStore]:
        store = await self.open()
        try:
            await store.claim_all()
            yield store
        finally:
            store.check_invariants()
            await store.close()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[PostgresStore]:
        store = await self.open()
        try:
            yield store
        finally:
            store.check_invariants()
            await store.close()

    @asynccontextmanager
    async def beside(self, store: SharedStore) -> AsyncIterator[PostgresStore]:
        async with self.shared() as other:
            yield other

    async def discard(self) -> None:
        """Give the database back, empty."""
        if self.database:
            await STORE_DATABASES.give_back(self.server, self.database)
            self.database = ""
