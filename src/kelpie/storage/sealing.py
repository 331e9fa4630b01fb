"""Opaque bodies and the checksums that lie beside them."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from kelpie.core.errors import CorruptionError
from kelpie.ports.faults import fault
from kelpie.storage.files import flip_bit


class Body(NamedTuple):
    """An opaque body with the checksum stored beside it."""

    checksum: int
    data: bytes


def seal(data: bytes) -> Body:
    """Return ``data`` with its checksum, for storing."""
    return Body(zlib.crc32(data), data)


def unseal(checksum: object, data: object, subject: str) -> bytes:
    """Return stored ``data`` after comparing its checksum.

    Raises:
        CorruptionError: It differs; the error names ``subject``.
    """
    if isinstance(data, bytes) and fault("storage.corruption"):
        data = flip_bit(data)
    # A damaged row may lack its body altogether, whatever the schema says of the column.
    if not isinstance(data, bytes) or zlib.crc32(data) != checksum:
        message = f"{subject} is damaged (checksum differs); run a check, then restore a backup"
        raise CorruptionError(message, subject=subject)
    return data
