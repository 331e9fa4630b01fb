"""The size of a commit, and what cannot be stored at all."""

from __future__ import annotations

import msgspec.structs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import INTEGER_MAX, INTEGER_MIN
from kelpie.storage.bounds import TEXT_BYTES_MAX, commit_bytes, require_integers, text_bytes
from kelpie.storage.records import AuditAppend, Commit, EventAppend, KvPut, ListPut

ACTOR = ActorId(Tenant("default"), "agent", "ada")
COMMIT = Commit(
    actor=ACTOR,
    shard=ACTOR.shard,
    epoch=1,
    incarnation=1,
    expected_version=0,
    schema_version=1,
    now_ms=1,
)


@given(st.text(max_size=64))
def test_a_texts_size_is_that_of_its_utf8(value: str) -> None:
    assert text_bytes("field", value) == len(value.encode())


@given(st.text(alphabet=st.characters(categories=["Cs"]), min_size=1, max_size=4))
def test_a_lone_surrogate_is_refused(value: str) -> None:
    with pytest.raises(InvalidFieldError, match="field"):
        text_bytes("field", value)


def test_bytes_are_counted_not_characters() -> None:
    with pytest.raises(LimitExceededError):
        text_bytes("field", "ß" * (TEXT_BYTES_MAX // 2 + 1))


@pytest.mark.parametrize("value", [INTEGER_MIN - 1, INTEGER_MAX + 1])
def test_an_integer_beyond_64_bits_is_refused(value: int) -> None:
    require_integers("field", INTEGER_MIN, INTEGER_MAX)
    with pytest.raises(InvalidFieldError):
        require_integers("field", value)


def test_everything_a_commit_carries_is_counted() -> None:
    commit = msgspec.structs.replace(
        COMMIT,
        state=bytes(10),
        kv=(KvPut("kk", bytes(100)),),
        events=(EventAppend("e", bytes(1_000)),),
        lists=(ListPut("c", "i", "s", bytes(10_000)),),
        audit=(AuditAppend("a", "p", bytes(100_000)),),
    )
    assert commit_bytes(commit) == 111_110 + len("kk" + "e" + "cis" + "ap")
    assert commit_bytes(COMMIT) == 0


@pytest.mark.parametrize(
    "changes", [{"shard": ACTOR.shard ^ 1}, {"incarnation": 0}, {"expected_version": -1}]
)
def test_a_commit_that_contradicts_itself_is_a_programmers_mistake(changes: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        commit_bytes(msgspec.structs.replace(COMMIT, **changes))
