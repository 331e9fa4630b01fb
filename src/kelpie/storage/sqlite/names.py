"""Which blobs the rows of a store name.

The store does not know what its bodies mean, so whatever reads like a blob's digest, in any text or
body of any table, counts as its name. A row can therefore keep a blob that it does not need, and
none can lose one, as long as higher rooms write digests as the plain text that they are. Bodies are
neither compressed nor encrypted.

Runs over a read-only connection, for an executor's thread.
"""

# ruff: noqa: S608  # the texts joined into SQL are the schema's own names

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from kelpie.core.digests import Digest

_NAME: Final = re.compile(rb"sha256:[0-9a-f]{64}")
_PREFIX_SQL: Final = f"x'{b'sha256:'.hex()}'"
_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
_PIECES: Final = "SELECT data FROM state_chunks WHERE actor = ? ORDER BY chunk"


def find_named(connection: sqlite3.Connection, digests: AbstractSet[Digest]) -> AbstractSet[Digest]:
    """Return those of ``digests`` that the store names, in one snapshot of it.

    Reads every row; the engine finds those that name anything.
    """
    wanted = {digest.encode(): digest for digest in digests}
    named: set[Digest] = set()
    assert not connection.in_transaction, "the snapshot begins here"
    connection.execute("BEGIN")
    try:
        for value in _suspects(connection):
            named.update(wanted[name] for name in _NAME.findall(value) if name in wanted)
    finally:
        connection.execute("ROLLBACK")
    assert named <= digests, "only what was asked for"
    return named


def _suspects(connection: sqlite3.Connection) -> Iterator[bytes]:
    """Yield every value that holds the beginning of a name, and every state kept in pieces."""
    for (table,) in connection.execute(_TABLES).fetchall():
        info = connection.execute(f"SELECT name, type FROM pragma_table_info('{table}')")
        values = [f"CAST({name} AS BLOB)" for name, kind in info if kind in {"TEXT", "BLOB"}]
        if not values:
            continue
        tests = " OR ".join(f"instr({value}, {_PREFIX_SQL})" for value in values)
        for row in connection.execute(f"SELECT {', '.join(values)} FROM {table} WHERE {tests}"):
            yield from row
    # A name may lie across the border of two pieces.
    for (actor,) in connection.execute("SELECT DISTINCT actor FROM state_chunks").fetchall():
        yield b"".join(data for (data,) in connection.execute(_PIECES, (actor,)))
