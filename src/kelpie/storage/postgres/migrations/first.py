"""Schema 1: in meaning that of the embedded engine, with what several nodes need beside it.

Text is compared byte by byte (``COLLATE "C"``), as the embedded engine does. ``actor``, ``sender``,
``receiver`` and ``owner`` hold the text form tenant/type/key. Rows of an actor carry its
incarnation, so that what is left of a deleted one is never seen by its successor. Every opaque body
has its CRC-32 beside it. A large state needs no rows of its own here: the engine keeps it aside.

``message_id`` and ``position`` are ``(number << 20) | ordinal``; a transaction's number is its
``xid`` plus ``meta.base``, which keeps numbers growing when a dump goes into a younger server.

``writers`` holds one row for each writing connection of each opened store: the last batch that it
committed, so that a lost connection leaves no outcome open, and a generation that shuts out the
connection that was lost.

``call_counts`` bounds what a tenant may have kept; it is counted shard by shard, because a single
row would make all who submit wait for each other.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from typing import Final

from kelpie.core.limits import SHARD_COUNT

_TEXT: Final = 'text COLLATE "C" NOT NULL'

_NODES: Final = (
    f"CREATE TABLE meta (name {_TEXT} PRIMARY KEY, value {_TEXT})",
    f"""CREATE TABLE sessions (
        session {_TEXT} PRIMARY KEY,
        name {_TEXT},
        address {_TEXT},
        state {_TEXT},
        renewals bigint NOT NULL,
        ttl_ms bigint NOT NULL,
        is_cordoned boolean NOT NULL,
        is_draining boolean NOT NULL,
        started_ms bigint NOT NULL,
        ended_ms bigint NOT NULL
    ) WITH (fillfactor = 50)""",
    "CREATE UNIQUE INDEX sessions_name ON sessions (name) WHERE ended_ms = 0",
    f"""CREATE TABLE shards (
        shard integer PRIMARY KEY,
        epoch bigint NOT NULL,
        session {_TEXT},
        pinned {_TEXT}
    ) WITH (fillfactor = 50)""",
    f"INSERT INTO shards SELECT shard, 0, '', '' FROM generate_series(0, {SHARD_COUNT - 1}) shard",
    f"""CREATE TABLE writers (
        holder {_TEXT},
        writer integer NOT NULL,
        generation bigint NOT NULL,
        batch bigint NOT NULL,
        number bigint NOT NULL,
        result bigint[] NOT NULL,
        at_ms bigint NOT NULL,
        PRIMARY KEY (holder, writer)
    ) WITH (fillfactor = 25)""",
)

_ACTORS: Final = (
    f"""CREATE TABLE actors (
        tenant {_TEXT},
        actor {_TEXT} PRIMARY KEY,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        incarnation bigint NOT NULL,
        version bigint NOT NULL,
        schema_version bigint NOT NULL,
        event_sequence bigint NOT NULL,
        event_floor bigint NOT NULL,
        updated_ms bigint NOT NULL,
        tombstoned boolean NOT NULL,
        checksum bigint NOT NULL,
        state bytea NOT NULL
    ) WITH (fillfactor = 70)""",
    # States are written at every turn: their bytes are not worth the time of compressing them.
    "ALTER TABLE actors ALTER COLUMN state SET STORAGE EXTERNAL",
    f"""CREATE TABLE kv (
        tenant {_TEXT},
        actor {_TEXT},
        incarnation bigint NOT NULL,
        key {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        checksum bigint NOT NULL,
        value bytea NOT NULL,
        PRIMARY KEY (actor, incarnation, key)
    )""",
    f"""CREATE TABLE effects (
        tenant {_TEXT},
        effect_id {_TEXT},
        actor {_TEXT},
        incarnation bigint NOT NULL,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        kind {_TEXT},
        state {_TEXT},
        is_open boolean NOT NULL,
        digest text COLLATE "C",
        attempt bigint NOT NULL,
        session {_TEXT},
        due_ms bigint NOT NULL,
        created_ms bigint NOT NULL,
        updated_ms bigint NOT NULL,
        checksum bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (tenant, effect_id)
    )""",
    "CREATE INDEX effects_open ON effects (effect_id) INCLUDE (shard) WHERE is_open",
    "CREATE INDEX effects_open_actor ON effects (actor, incarnation, effect_id) WHERE is_open",
    "CREATE INDEX effects_time ON effects (tenant, created_ms, effect_id)",
    "CREATE INDEX effects_state ON effects (tenant, state, created_ms, effect_id)",
    "CREATE INDEX effects_actor ON effects (actor, incarnation, created_ms, effect_id)",
    f"""CREATE TABLE reminders (
        tenant {_TEXT},
        actor {_TEXT},
        incarnation bigint NOT NULL,
        name {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        due_ms bigint NOT NULL,
        checksum bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (actor, incarnation, name)
    )""",
    "CREATE INDEX reminders_due ON reminders (due_ms, actor, name) INCLUDE (shard)",
    f"""CREATE TABLE replies (
        tenant {_TEXT},
        actor {_TEXT},
        incarnation bigint NOT NULL,
        method {_TEXT},
        key {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        request {_TEXT},
        expires_ms bigint NOT NULL,
        checksum bigint NOT NULL,
        reply bytea NOT NULL,
        PRIMARY KEY (actor, incarnation, method, key)
    )""",
    "CREATE INDEX replies_expiry ON replies (expires_ms)",
    f"""CREATE TABLE purges (
        purge bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant {_TEXT},
        actor {_TEXT},
        incarnation bigint NOT NULL,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        event_floor bigint NOT NULL,
        at_ms bigint NOT NULL
    )""",
)

_MESSAGES: Final = (
    f"""CREATE TABLE outbox (
        message_id bigint PRIMARY KEY,
        tenant {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        receiver_shard integer NOT NULL,
        sender {_TEXT},
        receiver {_TEXT},
        attempts bigint NOT NULL,
        not_before_ms bigint NOT NULL,
        error {_TEXT},
        checksum bigint NOT NULL,
        body bytea NOT NULL
    )""",
    "CREATE INDEX outbox_receiver ON outbox (receiver_shard, message_id)",
    f"""CREATE TABLE dead_letters (
        message_id bigint PRIMARY KEY,
        tenant {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        receiver_shard integer NOT NULL,
        sender {_TEXT},
        receiver {_TEXT},
        attempts bigint NOT NULL,
        error {_TEXT},
        at_ms bigint NOT NULL,
        checksum bigint NOT NULL,
        body bytea NOT NULL
    )""",
    "CREATE INDEX dead_letters_time ON dead_letters (tenant, at_ms, message_id)",
    f"""CREATE TABLE calls (
        tenant {_TEXT},
        call_id {_TEXT},
        actor {_TEXT},
        method {_TEXT},
        principal {_TEXT},
        key {_TEXT},
        request {_TEXT},
        message_id bigint NOT NULL,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        state {_TEXT},
        created_ms bigint NOT NULL,
        ended_ms bigint NOT NULL,
        expires_ms bigint NOT NULL,
        checksum bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (tenant, call_id)
    )""",
    "CREATE UNIQUE INDEX calls_message ON calls (message_id)",
    "CREATE UNIQUE INDEX calls_key ON calls (actor, method, key) WHERE key <> ''",
    "CREATE INDEX calls_ended ON calls (tenant, shard, expires_ms) WHERE expires_ms > 0",
    "CREATE INDEX calls_time ON calls (tenant, created_ms, call_id)",
    "CREATE INDEX calls_state ON calls (tenant, state, created_ms, call_id)",
    "CREATE INDEX calls_actor ON calls (actor, created_ms, call_id)",
    f"""CREATE TABLE call_counts (
        tenant {_TEXT},
        shard integer NOT NULL,
        kept bigint NOT NULL,
        PRIMARY KEY (tenant, shard)
    ) WITH (fillfactor = 50)""",
    f"""CREATE TABLE pauses (
        actor {_TEXT} PRIMARY KEY,
        tenant {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        principal {_TEXT},
        at_ms bigint NOT NULL
    )""",
)

_LOGS: Final = (
    f"""CREATE TABLE events (
        position bigint PRIMARY KEY,
        tenant {_TEXT},
        actor {_TEXT},
        sequence bigint NOT NULL,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        at_ms bigint NOT NULL,
        kind {_TEXT},
        checksum bigint NOT NULL,
        body bytea NOT NULL
    )""",
    "CREATE UNIQUE INDEX events_actor ON events (actor, sequence)",
    "CREATE INDEX events_tenant ON events (tenant, position)",
    f"""CREATE TABLE lists (
        tenant {_TEXT},
        collection {_TEXT},
        item_id {_TEXT},
        sort_key {_TEXT},
        owner {_TEXT},
        incarnation bigint NOT NULL,
        version bigint NOT NULL,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        deleted_ms bigint,
        checksum bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (tenant, collection, item_id)
    )""",
    """CREATE INDEX lists_order ON lists (tenant, collection, sort_key, item_id)
        WHERE deleted_ms IS NULL""",
    "CREATE INDEX lists_owner ON lists (owner, incarnation) WHERE deleted_ms IS NULL",
    "CREATE INDEX lists_deleted ON lists (deleted_ms) WHERE deleted_ms IS NOT NULL",
    f"""CREATE TABLE streams (
        tenant {_TEXT},
        actor {_TEXT},
        effect_id {_TEXT},
        attempt bigint NOT NULL,
        sequence bigint NOT NULL,
        incarnation bigint NOT NULL,
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        kind {_TEXT},
        checksum bigint NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (actor, incarnation, effect_id, attempt, sequence)
    )""",
    f"""CREATE TABLE audit (
        shard integer NOT NULL,
        sequence bigint NOT NULL,
        tenant {_TEXT},
        epoch bigint NOT NULL,
        at_ms bigint NOT NULL,
        actor {_TEXT},
        kind {_TEXT},
        principal {_TEXT},
        body bytea NOT NULL,
        previous bytea NOT NULL,
        hash bytea NOT NULL,
        PRIMARY KEY (shard, sequence)
    )""",
    "CREATE INDEX audit_tenant ON audit (tenant, shard, sequence)",
)

STATEMENTS: Final = _NODES + _ACTORS + _MESSAGES + _LOGS
