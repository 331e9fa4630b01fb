"""The chain breaks wherever it is touched."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import CorruptionError
from kelpie.core.ids import ActorId, Tenant
from kelpie.storage.audit import GENESIS, AuditHead, link_record, verify_chain
from kelpie.storage.records import AuditRecord

ACTOR = ActorId(Tenant("default"), "agent", "ada")
bodies = st.lists(st.binary(max_size=16), min_size=1, max_size=8)


def make_chain(contents: list[bytes], shard: int = 7) -> list[AuditRecord]:
    head = AuditHead(shard, 0, GENESIS)
    records = []
    for at_ms, body in enumerate(contents):
        record = link_record(
            head, at_ms=at_ms, actor=ACTOR, kind="approved", principal="person:eve", body=body
        )
        records.append(record)
        head = AuditHead(shard, record.sequence, record.hash)
    return records


@given(bodies)
def test_a_chain_verifies_to_its_newest_record(contents: list[bytes]) -> None:
    records = make_chain(contents)
    head = verify_chain(records, shard=7)
    assert head == AuditHead(7, len(records), records[-1].hash)


@pytest.mark.requirement("AUDIT-CHAIN")
@given(bodies, st.data())
def test_any_changed_field_breaks_the_chain(contents: list[bytes], data: st.DataObject) -> None:
    records = make_chain(contents)
    index = data.draw(st.integers(0, len(records) - 1))
    changed: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"shard": 8},
                {"sequence": 99},
                {"at_ms": -1},
                {"actor": ActorId(Tenant("default"), "agent", "bob")},
                {"kind": "denied"},
                {"principal": "person:mallory"},
                {"body": b"another body than any drawn one"},
                {"previous": bytes(31) + b"x"},
                {"hash": bytes(32)},
            ]
        )
    )
    records[index] = records[index]._replace(**changed)
    with pytest.raises(CorruptionError):
        verify_chain(records, shard=7)


@pytest.mark.requirement("AUDIT-CHAIN")
def test_a_removed_or_moved_record_is_named() -> None:
    records = make_chain([b"1", b"2", b"3"])
    for damaged in ([records[0], records[2]], [records[0], records[2], records[1]]):
        with pytest.raises(CorruptionError) as caught:
            verify_chain(damaged, shard=7)
        assert caught.value.fields == {"shard": 7, "sequence": 2}


def test_verifying_goes_on_from_a_head_that_was_verified_before() -> None:
    records = make_chain([b"1", b"2", b"3"])
    middle = verify_chain(records[:2], shard=7)
    assert verify_chain(records[2:], shard=7, start=middle).sequence == 3


def test_a_cut_tail_is_found_only_with_a_head_kept_elsewhere() -> None:
    records = make_chain([b"1", b"2", b"3"])
    kept = AuditHead(7, 3, records[2].hash)
    assert verify_chain(records[:2], shard=7).sequence == 2
    with pytest.raises(CorruptionError, match="record 3 of shard 7"):
        verify_chain(records[:2], shard=7, expected=kept)
    assert verify_chain(records, shard=7, expected=kept) == kept
    assert verify_chain([], shard=7, expected=AuditHead(7, 0, GENESIS)).sequence == 0
