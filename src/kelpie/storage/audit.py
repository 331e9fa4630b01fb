"""The audit chain: pure functions that link records and verify them.

Each shard has one chain. A record's hash covers the previous record's hash and every field of its
own, so a record can be neither changed, removed, inserted nor moved without every later hash
changing. What a chain alone cannot prove: that its newest records were not cut off, and that the
whole chain was not computed anew. That takes a head kept outside the store; hand it to
`verify_chain` as ``expected``.

Never reads a store: records arrive as values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from kelpie.core.errors import CorruptionError
from kelpie.core.ids import ActorId
from kelpie.storage.records import AuditRecord

GENESIS: Final = bytes(32)
_FORMAT: Final = "kelpie-audit-1"
_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")


class AuditHead(NamedTuple):
    """The newest link of a chain; ``sequence`` 0 and ``GENESIS`` for an empty one."""

    shard: int
    sequence: int
    hash: bytes


def link_record(
    head: AuditHead, *, at_ms: int, actor: ActorId, kind: str, principal: str, body: bytes
) -> AuditRecord:
    """Return the record that follows ``head`` in its chain."""
    assert len(head.hash) == 32, "a head carries a SHA-256"
    assert head.sequence >= 0, "a chain counts from one"
    sequence = head.sequence + 1
    fields = [_FORMAT, head.shard, sequence, at_ms, str(actor), kind, principal, body]
    digest = hashlib.sha256(head.hash + _encoder.encode(fields)).digest()
    return AuditRecord(head.shard, sequence, at_ms, actor, kind, principal, body, head.hash, digest)


def verify_chain(
    records: Iterable[AuditRecord],
    *,
    shard: int,
    start: AuditHead | None = None,
    expected: AuditHead | None = None,
) -> AuditHead:
    """Return the head of a chain after checking every link of ``records``.

    Args:
        records: One shard's records in order, beginning right after ``start``.
        shard: Whose chain it is.
        start: A head verified before; the chain's beginning when None.
        expected: A head kept outside the store, which must lie on the verified stretch.

    Raises:
        CorruptionError: A link does not follow from the one before it, or ``expected`` is not on
            the chain; the error names shard and sequence.
    """
    head = start or AuditHead(shard, 0, GENESIS)
    is_anchored = expected is None or expected == head
    for record in records:
        linked = link_record(
            head,
            at_ms=record.at_ms,
            actor=record.actor,
            kind=record.kind,
            principal=record.principal,
            body=record.body,
        )
        if record.shard != shard or linked != record:
            raise _broken(shard, head.sequence + 1, "does not follow from the one before it")
        head = AuditHead(shard, record.sequence, record.hash)
        is_anchored = is_anchored or expected == head
    if expected is not None and not is_anchored:
        raise _broken(shard, expected.sequence, "is not the one whose hash was kept elsewhere")
    return head


def _broken(shard: int, sequence: int, problem: str) -> CorruptionError:
    return CorruptionError(
        f"audit record {sequence} of shard {shard} {problem}; restore a backup to compare",
        shard=shard,
        sequence=sequence,
    )
