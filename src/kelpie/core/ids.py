"""Identities: actors, tenants, shards, and ids derived from a turn's seed.

Invariants: an ``ActorId`` that exists is valid; the shard of an actor never changes for a given
``SHARD_COUNT``; a derived id is a function of its seed and ordinal alone, so that a re-run of a
turn names the same objects.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, NewType

import msgspec

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.limits import ACTOR_ID_BYTES_MAX, SHARD_COUNT
from kelpie.core.quoting import quote_text

Tenant = NewType("Tenant", str)
TENANT_DEFAULT: Final = Tenant("default")

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._:@~+-]+\Z")
_UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


class ActorId(msgspec.Struct, frozen=True, order=True, gc=False):
    """The name of one virtual actor: tenant, type and key.

    Each segment is one or more of ``A-Z a-z 0-9 . _ : @ ~ + -``; the text form
    ``tenant/type/key`` is at most ``ACTOR_ID_BYTES_MAX`` bytes. A struct, because every call looks
    an actor up by it, and a struct is hashed and compared without running Python.

    Raises:
        InvalidFieldError: A segment is empty or has another character.
        LimitExceededError: The text form is too long.
    """

    tenant: Tenant
    type: str
    key: str

    def __post_init__(self) -> None:
        for field, value in (("tenant", self.tenant), ("type", self.type), ("key", self.key)):
            if not _SEGMENT.match(value):
                problem = f"{value[:64]!r} must be one or more of A-Z a-z 0-9 . _ : @ ~ + -"
                raise InvalidFieldError(f"actor.{field}", problem)
        size = len(self.tenant) + len(self.type) + len(self.key) + 2
        if size > ACTOR_ID_BYTES_MAX:
            raise LimitExceededError(
                "actor", actual=size, limit=ACTOR_ID_BYTES_MAX, unit="bytes", hint="shorten the key"
            )

    def __str__(self) -> str:
        return f"{self.tenant}/{self.type}/{self.key}"

    @property
    def shard(self) -> int:
        """The shard that owns this actor, in ``range(SHARD_COUNT)``."""
        digest = hashlib.blake2b(str(self).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % SHARD_COUNT

    @classmethod
    def parse(cls, text: str) -> ActorId:
        """Return the id whose text form is ``tenant/type/key``.

        Raises:
            InvalidFieldError: The text does not have three valid segments.
            LimitExceededError: The text is too long.
        """
        parts = text.split("/")
        if len(parts) != 3:
            raise InvalidFieldError("actor", f"{text[:64]!r} must read tenant/type/key")
        return cls(Tenant(parts[0]), parts[1], parts[2])


def derive_uuid(seed: bytes, ordinal: int) -> str:
    """Return the version-4-shaped UUID that ``seed`` and ``ordinal`` determine.

    Distinct (seed, ordinal) pairs give distinct ids up to hash collisions (122 bits).

    Source: RFC 9562, section 5.4 for the layout of version and variant bits.
    """
    assert ordinal >= 0, "an ordinal counts from zero"
    raw = bytearray(hashlib.blake2b(seed, digest_size=16, salt=ordinal.to_bytes(8, "big")).digest())
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def require_prefixed_id(field: str, value: str, prefix: str) -> str:
    """Return ``value`` if it reads ``<prefix>-<uuid4>``.

    Raises:
        InvalidFieldError: It reads otherwise.
    """
    head, _, tail = value.partition("-")
    if head != prefix or not _UUID4.match(tail):
        raise InvalidFieldError(field, f"{quote_text(value)} must read {prefix}-<uuid4>")
    return value
