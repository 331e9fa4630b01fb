"""Reading one actor over any connection: on the event loop's, or on one beside it."""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

from kelpie.core.errors import CorruptionError
from kelpie.core.ids import ActorId
from kelpie.core.limits import STATE_CHUNK_BYTES, STATE_INLINE_READ_BYTES_MAX
from kelpie.storage import decode
from kelpie.storage.decode import EFFECT_COLUMNS, Row
from kelpie.storage.records import StoredActor
from kelpie.storage.sealing import unseal

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


_WHOLE: Final = (
    "SELECT a.incarnation, a.version, a.schema_version, a.event_sequence, a.tombstoned, a.checksum,"
    " a.chunks, a.state, a.chunks OR EXISTS (SELECT 1 FROM effects e"
    " WHERE e.actor = a.actor AND e.incarnation = a.incarnation AND e.is_open)"
    " OR EXISTS (SELECT 1 FROM seals s WHERE s.actor = a.actor)"
    " FROM actors a WHERE a.actor = ?"
)


class Raw(NamedTuple):
    """An actor's rows as they lie in the file, of one snapshot, with its state put together.

    ``pieces`` counts those that were found of a state that lies in several.
    """

    row: Row
    state: bytes
    pieces: int
    effects: list[Row]


class Glance(NamedTuple):
    """What one statement tells of an actor: all of it in ``raw``, or that there is more to read.

    With ``raw`` None and no more, it never existed.
    """

    raw: Raw | None
    has_more: bool


def glance_at_actor(connection: sqlite3.Connection, name: str) -> Glance:
    """Read an actor whose state lies in its row and who has no open effects, as nearly all do.

    One statement is a snapshot of its own, and costs a third of what opening one does.
    """
    row = connection.execute(_WHOLE, (name,)).fetchone()
    if row is None:
        return Glance(None, has_more=False)
    assert len(row) == 9, "an actor's columns, and whether there is more"
    if row[8]:
        return Glance(None, has_more=True)
    return Glance(Raw(row[:8], row[7], 0, []), has_more=False)


def fetch_actor(connection: sqlite3.Connection, name: str, *, is_aside: bool) -> Raw | None:
    """Read an actor's rows inside the caller's snapshot; None if it never existed.

    A state that is too large to be read on the event loop is left out unless ``is_aside``: see
    `is_large`.
    """
    row = connection.execute(_ACTOR, (name,)).fetchone()
    if row is None:
        return None
    incarnation, tombstoned = row[0], row[4]
    chunks = row[6] if isinstance(row[6], int) else 0  # damage may have made it anything
    state, pieces = row[7], 0
    if chunks and chunks <= _CHUNKS_MAX:
        found = connection.execute(_CHUNKS, (name,)).fetchall()
        state, pieces = b"".join(piece for (piece,) in found), len(found)
    elif chunks and is_aside:
        state, pieces = _join_aside(connection.execute(_CHUNKS, (name,)))
    effects: list[Row] = []
    if not tombstoned:
        effects = connection.execute(_EFFECTS, (name, incarnation)).fetchall()
    return Raw(row, state, pieces, effects)


def _join_aside(pieces: Iterable[Row]) -> tuple[bytes, int]:
    """Join pieces and count them without keeping other threads from the interpreter.

    A join of 10 MB holds the interpreter's lock for milliseconds, which the event loop would feel;
    writing and reading a file in memory lets go of it while bytes are copied.
    """
    descriptor = os.memfd_create("kelpie-state", os.MFD_CLOEXEC)
    try:
        size_bytes = count = 0
        for (piece,) in pieces:
            written = os.write(descriptor, piece)
            assert written == len(piece), "a file in memory takes everything"
            size_bytes += written
            count += 1
        state = os.pread(descriptor, size_bytes, 0)
        assert len(state) == size_bytes, "a file in memory gives everything back"
        return state, count
    finally:
        os.close(descriptor)


def is_large(raw: Raw) -> bool:
    """Return whether the state's pieces have to be read beside the event loop."""
    return isinstance(raw.row[6], int) and raw.row[6] > _CHUNKS_MAX


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
    incarnation, version, schema_version, sequence, tombstoned, checksum, chunks, _ = raw.row
    if raw.pieces != chunks:
        message = f"{name} has {raw.pieces} of {chunks} pieces of its state; restore a backup"
        raise CorruptionError(message, subject=name)
    return StoredActor(
        actor=actor,
        incarnation=incarnation,
        version=0 if tombstoned else version,
        schema_version=schema_version,
        state=unseal(checksum, raw.state, name),
        effects=tuple(map(decode.effect_row, raw.effects)),
        event_sequence=sequence,
        tombstoned=bool(tombstoned),
    )
