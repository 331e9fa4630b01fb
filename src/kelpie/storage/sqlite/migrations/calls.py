"""Schema 2: submitted calls, and pauses that outlive a process.

``expires_ms`` is 0 while a call is pending. ``call_counts`` bounds what a tenant may have kept.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE calls (
        tenant TEXT NOT NULL,
        call_id TEXT NOT NULL,
        actor TEXT NOT NULL,
        method TEXT NOT NULL,
        principal TEXT NOT NULL,
        key TEXT NOT NULL,
        request TEXT NOT NULL,
        message_id INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        state TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        ended_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (tenant, call_id)
    )""",
    "CREATE UNIQUE INDEX calls_message ON calls (message_id)",
    "CREATE UNIQUE INDEX calls_key ON calls (actor, method, key) WHERE key != ''",
    "CREATE INDEX calls_ended ON calls (tenant, expires_ms) WHERE expires_ms > 0",
    "CREATE INDEX calls_time ON calls (tenant, created_ms, call_id)",
    "CREATE INDEX calls_state ON calls (tenant, state, created_ms, call_id)",
    "CREATE INDEX calls_actor ON calls (actor, created_ms, call_id)",
    "CREATE TABLE call_counts (tenant TEXT PRIMARY KEY NOT NULL, kept INTEGER NOT NULL)",
    """CREATE TABLE pauses (
        actor TEXT PRIMARY KEY NOT NULL,
        tenant TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        principal TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    )""",
)
