"""The schema's history. Each migration is applied whole or not at all, and never edited.

Everything lies in the schema ``kelpie`` of the database; ``meta.schema`` is the number of applied
migrations. An advisory lock lets one node migrate while the others wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kelpie.core.errors import StoreVersionError
from kelpie.storage.postgres.driver import ServerConnection
from kelpie.storage.postgres.migrations import apply, first, nodes, seals, single

ADVISORY_LOCK: Final = 0x4B454C50  # "KELP"; of the transaction, so that a lost connection frees it

Migration = tuple[str, ...]
MIGRATIONS: Final[tuple[Migration, ...]] = (
    first.STATEMENTS + apply.STATEMENTS + single.STATEMENTS + nodes.STATEMENTS,
    seals.STATEMENTS,
)
SCHEMA_VERSION: Final = len(MIGRATIONS)


async def read_version(connection: ServerConnection) -> int:
    """Return the schema version of the database, 0 for one without a store.

    Raises:
        StoreVersionError: Its schema ``kelpie`` is another program's, or newer than this program.
    """
    is_there = await connection.fetchval("SELECT to_regnamespace('kelpie') IS NOT NULL")
    if not is_there:
        return 0
    if await connection.fetchval("SELECT to_regclass('kelpie.meta')") is None:
        tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'kelpie'::regnamespace"
        if not await connection.fetchval(tables):
            return 0
        message = "the database has a schema 'kelpie' that is no store; name another database"
        raise StoreVersionError(message)
    found = await connection.fetchval("SELECT value FROM kelpie.meta WHERE name = 'schema'")
    version = int(found or 0)
    if version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"the store has schema {version}, this program knows {SCHEMA_VERSION}; "
            "install the version of Kelpie that wrote it, or a newer one",
            found=version,
            known=SCHEMA_VERSION,
        )
    return version


async def migrate(
    connection: ServerConnection, migrations: Sequence[Migration] = MIGRATIONS
) -> int:
    """Bring the database to the newest schema, one transaction per migration; return its version.

    Nodes that come at the same time wait for the one that migrates. After a failure the database
    has the schema of the last migration that succeeded.

    Raises:
        StoreVersionError: The schema is another program's, or newer than this program.
    """
    version = await read_version(connection)
    while version < len(migrations):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
            version = await read_version(connection)  # another node may have been quicker
            if version >= len(migrations):
                break
            await _apply(connection, migrations[version], version + 1)
            version += 1
    assert version >= len(migrations), "a migration counts"
    return version


async def _apply(connection: ServerConnection, migration: Migration, number: int) -> None:
    assert connection.is_in_transaction(), "a migration is applied whole or not at all"
    await connection.execute("CREATE SCHEMA IF NOT EXISTS kelpie")
    await connection.execute("SET LOCAL search_path TO kelpie")
    for statement in migration:
        await connection.execute(statement)
    await connection.execute(
        "INSERT INTO meta VALUES ('schema', $1), ('base', '0')"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE meta.name = 'schema'",
        str(number),
    )
