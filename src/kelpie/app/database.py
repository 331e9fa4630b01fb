"""Opens a store in a database for a node of this machine, and keeps its lease while it is open.

A lock on this machine makes the node's name its own here, and tells other commands where it can be
asked; see `kelpie.storage.holder`. The blobs lie in the data directory, which the nodes of one
machine share.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from kelpie.core.dsn import Dsn
from kelpie.core.errors import StoreHeldError
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.settings import Settings
from kelpie.storage.holder import HolderLock
from kelpie.storage.postgres.driver import (
    DriverError,
    close_gently,
    connect,
    refuse_to_open,
)
from kelpie.storage.postgres.migrations import read_version
from kelpie.storage.postgres.store import PostgresStore

BLOBS_DIRECTORY: Final = "blobs"


@asynccontextmanager
async def open_database(
    settings: Settings, dsn: Dsn, address: str, *, clock: Clock, rng: Rng
) -> AsyncGenerator[PostgresStore]:
    """Yield the store of ``dsn``, of which nothing is owned yet; closed at the end.

    Raises:
        StoreHeldError: A process of this machine has the node's name.
        ConfigError: The address is wrong, or the server would lose what it acknowledges.
        StoreVersionError: The schema is newer than this program.
        StoreError: The database cannot be reached.
    """
    place = settings.store.path
    for directory in (settings.data_dir, place.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock(settings, address)
    try:
        store = await PostgresStore.open(
            dsn.text,
            clock=clock,
            rng=rng,
            blobs_path=settings.data_dir / BLOBS_DIRECTORY,
            address=address,
            name=settings.node,
        )
        try:
            yield store
        finally:
            await store.close()
    finally:
        lock.release()


async def probe_database(settings: Settings) -> str:
    """Ask the settings' database what it is, change nothing in it, and say so.

    Raises:
        ConfigError: The address is wrong.
        StoreVersionError: The store in it is newer than this program.
        StoreError: The database cannot be reached.
    """
    assert settings.store.url is not None, "there is a database"
    place = settings.store.place
    try:
        connection = await connect(settings.store.url.text, name="kelpie doctor")
        try:
            version = await connection.fetchval("SELECT current_setting('server_version')")
            schema = await read_version(connection)
        finally:
            await close_gently(connection)
    except DriverError as error:
        raise refuse_to_open(error, place) from error
    kept = f"with a store of schema {schema}" if schema else "without a store yet"
    return f"PostgreSQL {version}, {kept}"


def _lock(settings: Settings, address: str) -> HolderLock:
    try:
        return HolderLock.acquire(settings.store.path, address=address)
    except StoreHeldError as error:
        message = f"{error.message}; or give this node another name with KELPIE_NODE"
        raise StoreHeldError(message, **error.fields) from None
