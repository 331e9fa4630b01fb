"""Schema 1.

``actor``, ``sender``, ``receiver`` and ``owner`` hold the text form tenant/type/key. Rows of an
actor carry its incarnation, so that what is left of a deleted one is never seen by its successor.
Every opaque body has its CRC-32 beside it.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL)",
    "CREATE TABLE counters (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL)",
    "INSERT INTO counters VALUES ('event', 0), ('message', 0)",
    """CREATE TABLE sessions (
        session TEXT PRIMARY KEY NOT NULL,
        started_ms INTEGER NOT NULL,
        ended_ms INTEGER
    )""",
    """CREATE TABLE shards (
        shard INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        session TEXT NOT NULL
    )""",
    """CREATE TABLE actors (
        tenant TEXT NOT NULL,
        actor TEXT PRIMARY KEY NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        incarnation INTEGER NOT NULL,
        version INTEGER NOT NULL,
        schema_version INTEGER NOT NULL,
        event_sequence INTEGER NOT NULL,
        event_floor INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL,
        tombstoned INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        chunks INTEGER NOT NULL,
        state BLOB NOT NULL
    )""",
    """CREATE TABLE state_chunks (
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        chunk INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (actor, chunk)
    )""",
    """CREATE TABLE kv (
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        key TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (actor, incarnation, key)
    )""",
    """CREATE TABLE effects (
        tenant TEXT NOT NULL,
        effect_id TEXT NOT NULL,
        actor TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        is_open INTEGER NOT NULL,
        digest TEXT,
        attempt INTEGER NOT NULL,
        session TEXT NOT NULL,
        due_ms INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (tenant, effect_id)
    )""",
    "CREATE INDEX effects_open ON effects (effect_id) WHERE is_open",
    "CREATE INDEX effects_open_actor ON effects (actor, incarnation, effect_id) WHERE is_open",
    "CREATE INDEX effects_time ON effects (tenant, created_ms, effect_id)",
    "CREATE INDEX effects_state ON effects (tenant, state, created_ms, effect_id)",
    "CREATE INDEX effects_actor ON effects (actor, incarnation, created_ms, effect_id)",
    """CREATE TABLE outbox (
        message_id INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        sender TEXT NOT NULL,
        receiver TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        not_before_ms INTEGER NOT NULL,
        error TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL
    )""",
    """CREATE TABLE dead_letters (
        message_id INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        sender TEXT NOT NULL,
        receiver TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        error TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL
    )""",
    "CREATE INDEX dead_letters_time ON dead_letters (tenant, at_ms, message_id)",
    """CREATE TABLE reminders (
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        name TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        due_ms INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (actor, incarnation, name)
    )""",
    "CREATE INDEX reminders_due ON reminders (due_ms, actor, name)",
    """CREATE TABLE events (
        position INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX events_actor ON events (actor, sequence)",
    "CREATE INDEX events_tenant ON events (tenant, position)",
    """CREATE TABLE lists (
        tenant TEXT NOT NULL,
        collection TEXT NOT NULL,
        item_id TEXT NOT NULL,
        sort_key TEXT NOT NULL,
        owner TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        version INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        deleted_ms INTEGER,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (tenant, collection, item_id)
    )""",
    """CREATE INDEX lists_order ON lists (tenant, collection, sort_key, item_id)
        WHERE deleted_ms IS NULL""",
    "CREATE INDEX lists_owner ON lists (owner, incarnation) WHERE deleted_ms IS NULL",
    "CREATE INDEX lists_deleted ON lists (deleted_ms) WHERE deleted_ms IS NOT NULL",
    """CREATE TABLE streams (
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        effect_id TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        incarnation INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        kind TEXT NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (actor, incarnation, effect_id, attempt, sequence)
    )""",
    """CREATE TABLE replies (
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        method TEXT NOT NULL,
        key TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        request TEXT NOT NULL,
        expires_ms INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        reply BLOB NOT NULL,
        PRIMARY KEY (actor, incarnation, method, key)
    )""",
    "CREATE INDEX replies_expiry ON replies (expires_ms)",
    """CREATE TABLE audit (
        shard INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        actor TEXT NOT NULL,
        kind TEXT NOT NULL,
        principal TEXT NOT NULL,
        body BLOB NOT NULL,
        previous BLOB NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (shard, sequence)
    )""",
    "CREATE INDEX audit_tenant ON audit (tenant, shard, sequence)",
    """CREATE TABLE purges (
        purge INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        incarnation INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        event_floor INTEGER NOT NULL,
        at_ms INTEGER NOT NULL
    )""",
)
