"""Schema 4: actors that were exported, and packages that were imported.

``state`` is ``sealed`` while the export can be taken back, and ``moved`` once it is confirmed.
``message_id`` is the newest message that the package holds.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE seals (
        actor TEXT PRIMARY KEY NOT NULL,
        tenant TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        state TEXT NOT NULL,
        package TEXT NOT NULL,
        destination TEXT NOT NULL,
        message_id INTEGER NOT NULL,
        principal TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    )""",
    """CREATE TABLE arrivals (
        package TEXT PRIMARY KEY NOT NULL,
        tenant TEXT NOT NULL,
        actor TEXT NOT NULL,
        shard INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        at_ms INTEGER NOT NULL
    )""",
)
