"""Texts with characters that PostgreSQL cannot keep.

Its texts may hold every character but U+0000, which ours may hold as well. So U+0000 and U+0001 are
stored as two characters each, which keeps the order of bytes, and everything else as it is.

Only values that are bound are changed, never the text of a query.
"""

from __future__ import annotations

from typing import Any, Final

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


def _encode(value: str) -> bytes:
    return encode_text(value).encode()


def _decode(stored: bytes) -> str:
    return decode_text(stored.decode())


async def keep_texts(connection: Any) -> None:
    """Let every text that the connection binds or reads pass through here."""
    # In the binary form, which a text shares with its own bytes: rows of composite types have no
    # other.
    await connection.set_type_codec(
        "text",
        schema="pg_catalog",
        encoder=_encode,
        decoder=_decode,
        format="binary",
    )
