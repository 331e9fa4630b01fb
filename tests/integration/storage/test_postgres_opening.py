"""Which databases a store opens, and what it says of those that it does not."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest

from kelpie.core.errors import ConfigError, StoreError, StoreVersionError
from kelpie.storage.postgres.migrations import SCHEMA_VERSION, migrate, read_version
from kelpie.storage.postgres.plan import ORDINAL_BITS
from kelpie.storage.postgres.store import PostgresStore
from kelpie.storage.records import OutboxRow
from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import FakeClock, Hand, SeededRng
from tests.postgres import GUARDED, make_guarded_role, shared_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PostgresEngine]:
    made = PostgresEngine(tmp_path)
    yield made
    asyncio.run(made.discard())


async def open_at(dsn: str, folder: Path) -> PostgresStore:
    return await PostgresStore.open(dsn, clock=FakeClock(), rng=SeededRng(), blobs_path=folder)


async def refused_at(dsn: str, folder: Path) -> str:
    """Opens, which must be refused because of a setting, and returns the reason."""
    with pytest.raises(ConfigError) as refused:
        await open_at(dsn, folder)
    return refused.value.message


async def test_an_address_that_leads_nowhere_is_refused_without_its_password(
    tmp_path: Path,
) -> None:
    server = shared_server()
    said = await refused_at(server.dsn("nowhere"), tmp_path)
    assert "no such database" in said
    await make_guarded_role(server)
    said = await refused_at(server.dsn("postgres", role=GUARDED, password="wr0ng"), tmp_path)
    assert "refuses this user or password" in said
    assert "wr0ng" not in said
    assert "no address of PostgreSQL" in await refused_at("/var/lib/kelpie.db", tmp_path)
    with pytest.raises(StoreError, match="cannot be reached"):
        await open_at("postgresql://kelpie@127.0.0.1:1/kelpie", tmp_path)


async def test_a_database_that_may_lose_what_it_acknowledged_is_refused(
    engine: PostgresEngine, tmp_path: Path
) -> None:
    async with engine.shared():
        pass
    await engine.server.execute(f"ALTER DATABASE {engine.database} SET synchronous_commit = off")
    assert "synchronous_commit = off" in await refused_at(
        engine.server.dsn(engine.database), tmp_path
    )
    await engine.server.execute(f"ALTER DATABASE {engine.database} RESET ALL")


async def test_a_database_of_another_encoding_is_refused_and_left_alone(tmp_path: Path) -> None:
    server = shared_server()
    await server.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    try:
        assert "LATIN1, not as UTF8" in await refused_at(server.dsn("latin"), tmp_path)
        connection = await asyncpg.connect(server.dsn("latin"))
        assert await connection.fetchval("SELECT to_regnamespace('kelpie') IS NULL")
        await connection.close()
    finally:
        await server.drop_database("latin")


@asynccontextmanager
async def connected(engine: PostgresEngine) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with a store, which is spoiled afterwards."""
    async with engine.shared():
        pass
    connection = await asyncpg.connect(engine.server.dsn(engine.database))
    try:
        yield connection
    finally:
        await connection.close()
        spoiled, engine.database = engine.database, ""
        await engine.server.drop_database(spoiled)


async def test_a_store_of_a_newer_schema_is_refused(engine: PostgresEngine) -> None:
    async with connected(engine) as database:
        newer = str(SCHEMA_VERSION + 1)
        await database.execute("UPDATE kelpie.meta SET value = $1 WHERE name = 'schema'", newer)
        with pytest.raises(StoreVersionError) as refused:
            async with engine.shared():
                pass
        assert refused.value.fields["found"] == SCHEMA_VERSION + 1
        assert await database.fetchval("SELECT count(*) FROM kelpie.sessions") == 0


async def test_another_programs_schema_is_refused_and_left_alone(engine: PostgresEngine) -> None:
    async with connected(engine) as database:
        await database.execute("DROP SCHEMA kelpie CASCADE")
        await database.execute("CREATE SCHEMA kelpie")
        assert await read_version(database) == 0, "an empty schema is anybody's"
        await database.execute("CREATE TABLE kelpie.theirs (n integer)")
        with pytest.raises(StoreVersionError, match="no store"):
            async with engine.shared():
                pass
        tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'kelpie'::regnamespace"
        assert await database.fetchval(tables) == 1


async def test_nodes_that_come_together_migrate_once(engine: PostgresEngine) -> None:
    async with connected(engine) as database:
        await database.execute("DROP SCHEMA kelpie CASCADE")
        dsn = engine.server.dsn(engine.database)
        connections = [await asyncpg.connect(dsn) for _ in range(4)]
        versions = await asyncio.gather(*map(migrate, connections))
        assert versions == [SCHEMA_VERSION] * 4
        for connection in connections:
            await connection.close()
        async with engine.opened() as store:
            await Hand(store).turn(state=b"s")


async def test_a_migration_that_fails_leaves_nothing_behind(engine: PostgresEngine) -> None:
    async with connected(engine) as database:
        await database.execute("DROP SCHEMA kelpie CASCADE")
        broken = (("CREATE TABLE meta (name text PRIMARY KEY, value text)", "SELECT broken"),)
        with pytest.raises(asyncpg.UndefinedColumnError):
            await migrate(database, broken)
        assert await read_version(database) == 0
        async with engine.opened() as store:
            assert (await store.stats()).schema_version == SCHEMA_VERSION


async def test_numbers_go_on_above_those_of_a_dump(
    engine: PostgresEngine,
) -> None:
    async with connected(engine) as database:
        async with engine.opened() as store:
            hand = Hand(store)
            send = OutboxRow(sender=hand.actor, receiver=hand.actor, body=b"")
            await hand.turn(sends=(send,))
        far = 10**9 << ORDINAL_BITS | 7
        await database.execute("UPDATE kelpie.outbox SET message_id = $1", far)
        async with engine.opened() as store:
            hand.store = store
            (message_id,) = (await hand.turn(sends=(send,))).message_ids
            assert message_id > far
            assert [message.message_id for message in await store.outbox(0, 9)] == [far, message_id]
        base = await database.fetchval("SELECT value FROM kelpie.meta WHERE name = 'base'")
        async with engine.opened():
            pass
        again = await database.fetchval("SELECT value FROM kelpie.meta WHERE name = 'base'")
        assert base == again, "it is lifted once"
