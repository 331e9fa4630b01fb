"""Texts with characters that PostgreSQL cannot keep.

Its texts may hold every character but U+0000, which ours may hold as well. So U+0000 and U+0001 are
stored as two characters each, which keeps the order of bytes, and everything else as it is.

Only values that are bound are changed, never the text of a query.
"""

from __future__ import annotations

from typing import Final

import asyncpg

_STORED: Final = {"\0": "\1\1", "\1": "\1\2"}
_MARKS: Final = str.maketrans(_STORED)


def encode_text(value: str) -> str:
    """Return ``value`` as it is stored."""
    if "\0" in value or "\1" in value:
        return value.translate(_MARKS)
    return value


def decode_text(stored: str) -> str:
    """Return the value that `encode_text` was given."""
    if "\1" in stored:
        # From the left, a mark is never the second half of another one.
        return stored.replace("\1\1", "\0").replace("\1\2", "\1")
    return stored


async def keep_texts(connection: asyncpg.Connection) -> None:
    """Let every text that the connection binds or reads pass through here."""
    # In the binary form, which a text shares with its own bytes: rows of composite types have no
    # other.
    await connection.set_type_codec(
        "text",
        schema="pg_catalog",
        encoder=lambda value: encode_text(value).encode(),
        decoder=lambda stored: decode_text(stored.decode()),
        format="binary",
    )
