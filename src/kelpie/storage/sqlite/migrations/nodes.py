"""Schema 3: nodes. A session says whose it is and where it is reached; a shard may be pinned.

``name`` is empty in sessions that no node had: those of older programs, and those of whoever only
opens a store for others. ``ttl_ms`` is 0 in sessions that are no lease: the lock of the file is
held instead.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    "ALTER TABLE sessions ADD COLUMN name TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE sessions ADD COLUMN address TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE sessions ADD COLUMN state TEXT NOT NULL DEFAULT 'stopped'",
    "ALTER TABLE sessions ADD COLUMN renewals INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sessions ADD COLUMN ttl_ms INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sessions ADD COLUMN is_cordoned INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sessions ADD COLUMN is_draining INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE shards ADD COLUMN pinned TEXT NOT NULL DEFAULT ''",
    "CREATE UNIQUE INDEX sessions_living ON sessions (name) WHERE ended_ms IS NULL AND name != ''",
    "CREATE INDEX sessions_ended ON sessions (ended_ms) WHERE ended_ms IS NOT NULL",
)
