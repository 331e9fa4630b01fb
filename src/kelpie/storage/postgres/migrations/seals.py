"""Schema 2: actors that were exported, and packages that were imported; as in the embedded one."""

from __future__ import annotations

from typing import Final

_TEXT: Final = 'text COLLATE "C" NOT NULL'

STATEMENTS: Final = (
    f"""CREATE TABLE seals (
        actor {_TEXT} PRIMARY KEY,
        tenant {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        state {_TEXT},
        package {_TEXT},
        destination {_TEXT},
        message_id bigint NOT NULL,
        principal {_TEXT},
        at_ms bigint NOT NULL
    )""",
    f"""CREATE TABLE arrivals (
        package {_TEXT} PRIMARY KEY,
        tenant {_TEXT},
        actor {_TEXT},
        shard integer NOT NULL,
        epoch bigint NOT NULL,
        at_ms bigint NOT NULL
    )""",
)
