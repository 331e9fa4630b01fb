"""Rows of the file in the words of no engine, and back: what copies and packages are made of.

Checks what it reads against the checksums beside it, and writes new ones. Blocks on the disk.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from kelpie.core.errors import CorruptionError
from kelpie.core.limits import STATE_CHUNK_BYTES
from kelpie.storage.sealing import seal, unseal
from kelpie.storage.tables import ACTORS, Row, Table

_CHUNKS: Final = "SELECT data FROM state_chunks WHERE actor = ? ORDER BY chunk"
_OWN: Final = {"actors": ("checksum", "chunks"), "shards": ("session",)}


class Which(NamedTuple):
    """A condition on rows: SQL over their table's columns, and the values it binds."""

    condition: str
    values: tuple[object, ...]


EVERY: Final = Which("1", ())


def read_rows(
    connection: sqlite3.Connection, table: Table, which: Which, *, after: Row | None, limit: int
) -> list[Row]:
    """Return up to ``limit`` rows with a key above ``after``, by key.

    Raises:
        CorruptionError: A checksum does not match.
    """
    own = _own_columns(table)
    query = f"SELECT {', '.join((*table.names, *own))} FROM {table.name} WHERE ({which.condition})"
    values = list(which.values)
    if after is not None:
        assert len(after) == len(table.key), "a key has all its columns"
        marks = ", ".join("?" * len(after))
        query += f" AND ({', '.join(table.key)}) > ({marks})"
        values += after
    query += f" ORDER BY {', '.join(table.key)} LIMIT ?"
    found = connection.execute(query, (*values, limit)).fetchall()
    return [_read(connection, table, row) for row in found]


def _own_columns(table: Table) -> tuple[str, ...]:
    return _OWN.get(table.name, ("checksum",) if table.body else ())


def _read(connection: sqlite3.Connection, table: Table, row: tuple[object, ...]) -> Row:
    width = len(table.columns)
    values = list(row[:width])
    if table.body:
        place = table.place(table.body)
        body = values[place]
        key = "/".join(str(values[table.place(name)]) for name in table.key)
        if table is ACTORS and row[width + 1]:
            pieces = connection.execute(_CHUNKS, (values[table.place("actor")],)).fetchall()
            if len(pieces) != row[width + 1]:
                message = f"{key} has {len(pieces)} of {row[width + 1]} pieces of its state"
                raise CorruptionError(f"{message}; restore a backup", subject=key)
            body = b"".join(piece for (piece,) in pieces)
        values[place] = unseal(row[width], body, f"{table.name} row {key}")
    return tuple(values)  # type: ignore[arg-type]  # the engine gives what the columns take


def write_rows(connection: sqlite3.Connection, table: Table, rows: Sequence[Row]) -> None:
    """Write new rows.

    Raises:
        sqlite3.IntegrityError: There is a row with this key.
    """
    own = _own_columns(table)
    columns = (*table.names, *own)
    marks = ", ".join("?" * len(columns))
    verb = "INSERT OR REPLACE" if table.name == "counters" else "INSERT"
    query = f"{verb} INTO {table.name} ({', '.join(columns)}) VALUES ({marks})"
    for row in rows:
        assert len(row) == len(table.columns), "a row has a value for each column"
        written = connection.execute(query, _written(connection, table, row)).rowcount
        assert written == 1, "a row is written once"


def _written(connection: sqlite3.Connection, table: Table, row: Row) -> tuple[object, ...]:
    if table.name == "shards":
        return (*row, "")
    if not table.body:
        return row
    place = table.place(table.body)
    body = row[place]
    assert isinstance(body, bytes), "a body is bytes"
    checksum = seal(body).checksum
    if table is not ACTORS:
        return (*row, checksum)
    if len(body) <= STATE_CHUNK_BYTES:
        return (*row, checksum, 0)
    tenant, actor, shard, epoch = row[:4]
    offsets = range(0, len(body), STATE_CHUNK_BYTES)
    for chunk, offset in enumerate(offsets):
        piece = body[offset : offset + STATE_CHUNK_BYTES]
        values = (tenant, actor, chunk, shard, epoch, piece)
        connection.execute("INSERT INTO state_chunks VALUES (?, ?, ?, ?, ?, ?)", values)
    return (*row[:place], b"", *row[place + 1 :], checksum, len(offsets))
