"""What a store's tables hold, in the words of no engine: for copies of stores and of actors.

A row is a tuple of the values of its table's columns, in their order. What an engine adds for
itself (checksums, pieces of large values) is not among them; what it needs to write the row is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from kelpie.core.errors import CorruptionError
from kelpie.core.limits import INTEGER_MAX, INTEGER_MIN

Value = str | int | bytes | None
Row = tuple[Value, ...]
Kind = Literal["text", "integer", "bytes", "text?", "integer?"]
"""Of a column's values; with a question mark None is one of them."""

_KINDS: Final[Mapping[str, Kind]] = {
    "t": "text",
    "i": "integer",
    "b": "bytes",
    "t?": "text?",
    "i?": "integer?",
}
_TYPES: Final = {"text": str, "integer": int, "bytes": bytes}


class Column(NamedTuple):
    """One column."""

    name: str
    kind: Kind


class Table(NamedTuple):
    """One table.

    Attributes:
        name: The same in every engine.
        columns: In the order of a row's values.
        key: The columns that name a row, and order the rows.
        actor: The column that says whose row it is; empty where rows are nobody's.
        body: The opaque value that an engine keeps a checksum of; empty without one.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    actor: str
    body: str

    def place(self, column: str) -> int:
        """Return the place of a column in a row."""
        return self.names.index(column)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)

    def key_of(self, row: Row) -> Row:
        """Return the values that name a row."""
        return tuple(row[self.place(name)] for name in self.key)

    def check(self, row: Row) -> None:
        """Return if the row's values are what the columns take.

        Raises:
            CorruptionError: They are not.
        """
        fits = len(row) == len(self.columns) and all(map(_fits, self.columns, row))
        if not fits:
            message = f"a row of {self.name} has values that its columns do not take"
            raise CorruptionError(message, subject=self.name)


def _fits(column: Column, value: object) -> bool:
    if value is None:
        return column.kind.endswith("?")
    if type(value) is not _TYPES[column.kind.removesuffix("?")]:
        return False
    if isinstance(value, int):
        return INTEGER_MIN <= value <= INTEGER_MAX
    if isinstance(value, str):
        return value.isascii() or _is_encodable(value)
    return True


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _table(name: str, columns: str, *, key: str, actor: str = "", body: str = "") -> Table:
    parsed = tuple(Column(*_column(text)) for text in columns.split())
    table = Table(name, parsed, tuple(key.split()), actor, body)
    assert set(table.key) <= set(table.names), "a key is of columns"
    return table


def _column(text: str) -> tuple[str, Kind]:
    name, _, kind = text.partition(":")
    return name, _KINDS[kind]


ACTORS: Final = _table(
    "actors",
    "tenant:t actor:t shard:i epoch:i incarnation:i version:i schema_version:i event_sequence:i"
    " event_floor:i updated_ms:i tombstoned:i state:b",
    key="actor",
    actor="actor",
    body="state",
)
KV: Final = _table(
    "kv",
    "tenant:t actor:t incarnation:i key:t shard:i epoch:i value:b",
    key="actor incarnation key",
    actor="actor",
    body="value",
)
EFFECTS: Final = _table(
    "effects",
    "tenant:t effect_id:t actor:t incarnation:i shard:i epoch:i kind:t state:t is_open:i digest:t?"
    " attempt:i session:t due_ms:i created_ms:i updated_ms:i body:b",
    key="tenant effect_id",
    actor="actor",
    body="body",
)
OUTBOX: Final = _table(
    "outbox",
    "message_id:i tenant:t shard:i epoch:i sender:t receiver:t attempts:i not_before_ms:i error:t"
    " body:b",
    key="message_id",
    actor="receiver",
    body="body",
)
REMINDERS: Final = _table(
    "reminders",
    "tenant:t actor:t incarnation:i name:t shard:i epoch:i due_ms:i body:b",
    key="actor incarnation name",
    actor="actor",
    body="body",
)
EVENTS: Final = _table(
    "events",
    "position:i tenant:t actor:t sequence:i shard:i epoch:i at_ms:i kind:t body:b",
    key="position",
    actor="actor",
    body="body",
)
LISTS: Final = _table(
    "lists",
    "tenant:t collection:t item_id:t sort_key:t owner:t incarnation:i version:i shard:i epoch:i"
    " deleted_ms:i? body:b",
    key="tenant collection item_id",
    actor="owner",
    body="body",
)
STREAMS: Final = _table(
    "streams",
    "tenant:t actor:t effect_id:t attempt:i sequence:i incarnation:i shard:i epoch:i kind:t body:b",
    key="actor incarnation effect_id attempt sequence",
    actor="actor",
    body="body",
)
REPLIES: Final = _table(
    "replies",
    "tenant:t actor:t incarnation:i method:t key:t shard:i epoch:i request:t expires_ms:i reply:b",
    key="actor incarnation method key",
    actor="actor",
    body="reply",
)
CALLS: Final = _table(
    "calls",
    "tenant:t call_id:t actor:t method:t principal:t key:t request:t message_id:i shard:i epoch:i"
    " state:t created_ms:i ended_ms:i expires_ms:i body:b",
    key="tenant call_id",
    actor="actor",
    body="body",
)

ACTOR_TABLES: Final = (
    KV,
    EFFECTS,
    OUTBOX,
    REMINDERS,
    EVENTS,
    LISTS,
    STREAMS,
    REPLIES,
    CALLS,
)
"""The rows of one actor, beside its state."""

STORE_TABLES: Final = (
    ACTORS,
    *ACTOR_TABLES,
    _table(
        "dead_letters",
        "message_id:i tenant:t shard:i epoch:i sender:t receiver:t attempts:i error:t at_ms:i"
        " body:b",
        key="message_id",
        body="body",
    ),
    _table(
        "audit",
        "shard:i sequence:i tenant:t epoch:i at_ms:i actor:t kind:t principal:t body:b previous:b"
        " hash:b",
        key="shard sequence",
    ),
    _table(
        "purges",
        "tenant:t actor:t incarnation:i shard:i epoch:i event_floor:i at_ms:i",
        key="actor incarnation",
    ),
    _table("pauses", "actor:t tenant:t shard:i epoch:i principal:t at_ms:i", key="actor"),
    _table(
        "seals",
        "actor:t tenant:t shard:i epoch:i state:t package:t destination:t message_id:i"
        " principal:t at_ms:i",
        key="actor",
    ),
    _table("arrivals", "package:t tenant:t actor:t shard:i epoch:i at_ms:i", key="package"),
    _table("counters", "name:t value:i", key="name"),
    _table("shards", "shard:i epoch:i", key="shard"),
)
"""Everything that a copy of a store holds; sessions stay behind, since they end with it."""

TABLES: Final[Mapping[str, Table]] = {table.name: table for table in STORE_TABLES}
