"""SHA-256 over canonical bytes: what an approval binds to and what a blob is named by.

A digest's text form is ``sha256:`` and 64 lower-case hex digits.
"""

from __future__ import annotations

import hashlib
from typing import Final, NewType

import msgspec

Digest = NewType("Digest", str)

_PREFIX: Final = "sha256:"
_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")


def digest_bytes(data: bytes) -> Digest:
    """Return the digest of ``data``."""
    return Digest(_PREFIX + hashlib.sha256(data).hexdigest())


def digest_value(value: object) -> Digest:
    """Return the digest of any msgspec-encodable value, whatever the order of its mapping keys."""
    return digest_bytes(_encoder.encode(value))


def is_digest(text: str) -> bool:
    """Return whether ``text`` has the form of a digest."""
    tail = text.removeprefix(_PREFIX)
    return text.startswith(_PREFIX) and len(tail) == 64 and set(tail) <= set("0123456789abcdef")
