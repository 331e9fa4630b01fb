"""Opening a database: what the server must be like, its schema, and numbers that only grow.

Refuses a server that may lose what it has acknowledged: durability is a promise of the store.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit, urlunsplit

from kelpie.core.errors import ConfigError, StoreVersionError
from kelpie.storage.postgres.copying import require_unsealed
from kelpie.storage.postgres.driver import (
    CONTROL_SETTINGS,
    Connection,
    DriverError,
    connect,
    refuse_to_open,
)
from kelpie.storage.postgres.migrations import ADVISORY_LOCK, migrate
from kelpie.storage.postgres.plan import ORDINAL_BITS

_DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")
_VERSION_MIN: Final = 150_000
_WRITERS_KEPT_MS: Final = 7 * 86_400_000  # a row is asked for within seconds, if ever
_NUMBERS: Final = (
    "SELECT message_id FROM outbox",
    "SELECT message_id FROM dead_letters",
    "SELECT message_id FROM calls",
    "SELECT position FROM events",
)


def show_place(dsn: str) -> str:
    """Return the database's address as a message may show it: without its password."""
    try:
        parts = urlsplit(dsn)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or ""
    except ValueError:
        return "the database"
    netloc = f"{user}@{host}" if user else host
    return urlunsplit((parts.scheme, netloc, parts.path, "", "")) or "the database"


async def prepare(dsn: str, *, name: str, now_ms: int, incarnation: str) -> tuple[Connection, bool]:
    """Check the server, bring the schema up to date, and return a connection to control with.

    Also returns whether the store is held. ``incarnation`` names the store if it has no name yet.

    Raises:
        ConfigError: The address is wrong, or the server would lose commits or damage texts.
        StoreVersionError: The schema is another program's, or newer than this program.
        StoreError: The server cannot be reached, or failed.
    """
    place = show_place(dsn)
    if _scheme(dsn) not in {"postgresql", "postgres"}:
        raise ConfigError(f"{place} is no address of PostgreSQL; write postgresql://host/database")
    try:
        connection = await connect(dsn, name=name, settings=CONTROL_SETTINGS)
    except DriverError as error:
        raise refuse_to_open(error, place) from error
    try:
        await _require_server(connection, place)
        await migrate(connection)
        await require_unsealed(connection, place)
        await _settle_numbers(connection, now_ms=now_ms, incarnation=incarnation)
        query = "SELECT 1 FROM meta WHERE name = 'held'"
        return connection, await connection.fetchval(query) is not None
    except DriverError as error:
        connection.terminate()
        raise refuse_to_open(error, place) from error
    except BaseException:
        connection.terminate()
        raise


def _scheme(dsn: str) -> str:
    """Return the scheme of an address, empty when it has none."""
    return dsn.partition("://")[0] if "://" in dsn else ""


async def _require_server(connection: Connection, place: str) -> None:
    """Return if the server keeps what it acknowledges, and texts as they are.

    Raises:
        ConfigError: It does not; names the setting.
        StoreVersionError: It is too old.
    """
    for setting in _DURABLE:
        value = await connection.fetchval("SELECT current_setting($1)", setting)
        if value == "off":
            message = f"{place} runs with {setting} = off, and may lose what it has acknowledged"
            raise ConfigError(f"{message}; turn it on in postgresql.conf", setting=setting)
    encoding = await connection.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        message = f"{place} keeps its texts as {encoding}, not as UTF8"
        raise ConfigError(
            f"{message}; create the database with ENCODING 'UTF8'", setting="encoding"
        )
    version = int(await connection.fetchval("SELECT current_setting('server_version_num')"))
    if version < _VERSION_MIN:
        needed = _VERSION_MIN // 10_000
        message = f"{place} is PostgreSQL {version // 10_000}; Kelpie needs {needed} or newer"
        raise StoreVersionError(message, found=version // 10_000, known=needed)


async def _settle_numbers(connection: Connection, *, now_ms: int, incarnation: str) -> None:
    """Name the store, and lift ``meta.base`` above whatever a restored dump brought along.

    The rows of writers that are long gone are removed after their numbers were looked at.
    """
    assert incarnation, "a store has a name"
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", ADVISORY_LOCK)
        await connection.execute(
            "INSERT INTO meta VALUES ('incarnation', $1) ON CONFLICT DO NOTHING", incarnation
        )
        highest = await connection.fetchval("SELECT coalesce(max(number), 0) FROM writers")
        for table in _NUMBERS:
            query = f"SELECT max(number) FROM ({table}) n (number)"  # noqa: S608  constants
            found = await connection.fetchval(query)
            highest = max(highest, (found or 0) >> ORDINAL_BITS)
        next_number = await connection.fetchval(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint + value::bigint"
            " FROM meta WHERE name = 'base'"
        )
        if highest >= next_number:
            await connection.execute(
                "UPDATE meta SET value = (value::bigint + $1)::text WHERE name = 'base'",
                highest - next_number + 1,
            )
        await connection.execute(
            "DELETE FROM writers WHERE at_ms < $1 AND number < (SELECT max(number) FROM writers)",
            now_ms - _WRITERS_KEPT_MS,
        )
