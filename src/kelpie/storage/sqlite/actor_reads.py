"""Reading one actor over any connection: on the event loop's, or on one beside it."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from kelpie.core.errors import CorruptionError
from kelpie.core.ids import ActorId
from kelpie.core.limits import STATE_CHUNK_BYTES, STATE_INLINE_READ_BYTES_MAX
from kelpie.storage.records import StoredActor
from kelpie.storage.sqlite import decode
from kelpie.storage.sqlite.decode import EFFECT_COLUMNS, Row
from kelpie.storage.sqlite.engine import unseal

_CHUNKS_MAX: Final = STATE_INLINE_READ_BYTES_MAX // STATE_CHUNK_BYTES
_ACTOR: Final = (
    "SELECT incarnation, version, schema_version, event_sequence, tombstoned, checksum, chunks,"
    " state FROM actors WHERE actor = ?"
)
_CHUNKS: Final = "SELECT data FROM state_chunks WHERE actor = ? ORDER BY chunk"
_EFFECTS: Final = (
    f"SELECT {EFFECT_COLUMNS} FROM effects e WHERE e.actor = ? AND e.incarnation = ? AND e.is_open"
    " ORDER BY e.effect_id"
)


class Raw(NamedTuple):
    """An actor's rows as they lie in the file, of one snapshot, with the pieces of its state."""

    row: Row
    pieces: list[Row]
    effects: list[Row]


def fetch_actor(connection: sqlite3.Connection, name: str, *, is_aside: bool) -> Raw | None:
    """Read an actor's rows inside the caller's snapshot; None if it never existed.

    ``pieces`` is left empty for a state that is too large to be read on the event loop, unless
    ``is_aside``: see `is_whole`.
    """
    row = connection.execute(_ACTOR, (name,)).fetchone()
    if row is None:
        return None
    incarnation, tombstoned, chunks = row[0], row[4], row[6]
    pieces: list[Row] = []
    if chunks and (is_aside or chunks <= _CHUNKS_MAX):
        pieces = connection.execute(_CHUNKS, (name,)).fetchall()
    effects: list[Row] = []
    if not tombstoned:
        effects = connection.execute(_EFFECTS, (name, incarnation)).fetchall()
    return Raw(row, pieces, effects)


def is_large(raw: Raw) -> bool:
    """Return whether the state's pieces have to be read beside the event loop."""
    return bool(raw.row[6] > _CHUNKS_MAX)


def read_large_actor(connection: sqlite3.Connection, actor: ActorId) -> StoredActor | None:
    """Return an actor with a state of any size, from one snapshot. For an executor's thread.

    Raises:
        CorruptionError: Its checksum does not match.
    """
    connection.execute("BEGIN")
    raw = fetch_actor(connection, str(actor), is_aside=True)
    connection.execute("ROLLBACK")
    return None if raw is None else stored_actor(actor, raw)


def stored_actor(actor: ActorId, raw: Raw) -> StoredActor:
    """Return the actor of its rows.

    Raises:
        CorruptionError: A checksum does not match, or a piece is missing; names the actor.
    """
    name = str(actor)
    incarnation, version, schema_version, sequence, tombstoned, checksum, chunks, state = raw.row
    if chunks:
        if len(raw.pieces) != chunks:
            message = f"{name} has {len(raw.pieces)} of {chunks} pieces of its state"
            raise CorruptionError(f"{message}; restore a backup", subject=name)
        state = b"".join(piece for (piece,) in raw.pieces)
    return StoredActor(
        actor=actor,
        incarnation=incarnation,
        version=0 if tombstoned else version,
        schema_version=schema_version,
        state=unseal(checksum, state, name),
        effects=tuple(map(decode.effect_row, raw.effects)),
        event_sequence=sequence,
        tombstoned=bool(tombstoned),
    )
