"""The schema's history. Each migration is applied whole or not at all, and never edited.

The number of applied migrations is the file's ``user_version``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from kelpie.core.errors import StoreVersionError
from kelpie.ports.faults import fault
from kelpie.storage.sqlite.injected import engine_error
from kelpie.storage.sqlite.migrations import calls, first, nodes, seals

APPLICATION_ID: Final = 0x4B454C50  # "KELP", so that no other program's file is taken for a store

Migration = tuple[str, ...]
MIGRATIONS: Final[tuple[Migration, ...]] = (
    first.STATEMENTS,
    calls.STATEMENTS,
    nodes.STATEMENTS,
    seals.STATEMENTS,
)
SCHEMA_VERSION: Final = len(MIGRATIONS)


def read_version(connection: sqlite3.Connection) -> int:
    """Return the schema version of an open file, 0 for an empty one.

    Raises:
        StoreVersionError: The file is another program's, or newer than this program.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (tables or version):
        message = "the file is an SQLite database, but not a Kelpie store; name another path"
        raise StoreVersionError(message, application_id=int(application))
    if version > SCHEMA_VERSION:
        raise StoreVersionError(
            f"the store has schema {version}, this program knows {SCHEMA_VERSION}; "
            "install the version of Kelpie that wrote it, or a newer one",
            found=int(version),
            known=SCHEMA_VERSION,
        )
    return int(version)


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the file to the newest schema, one transaction per migration, and return its version.

    After a failure the file has the schema of the last migration that succeeded.
    """
    assert not connection.in_transaction, "a migration is a transaction of its own"
    version = read_version(connection)
    for number, statements in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
            if fault("migration.schema_fail"):
                raise engine_error(sqlite3.SQLITE_IOERR)
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        version = number
    assert not connection.in_transaction, "a migration ends its transaction"
    return version


def _roll_back(connection: sqlite3.Connection) -> None:
    # The engine ends the transaction by itself after some failures.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
