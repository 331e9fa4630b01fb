"""Texts that PostgreSQL cannot keep are kept, in the order of their bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kelpie.storage.postgres.reader import number_marks
from kelpie.storage.postgres.texts import decode_text, encode_text

texts = st.text() | st.text("\0\1\2a")


@given(value=texts)
def test_every_text_comes_back_and_none_is_stored_with_a_nul(value: str) -> None:
    stored = encode_text(value)
    assert "\0" not in stored
    assert decode_text(stored) == value


@given(first=texts, second=texts)
def test_stored_texts_have_the_order_of_their_values(first: str, second: str) -> None:
    in_order = first.encode() < second.encode()
    assert (encode_text(first).encode() < encode_text(second).encode()) == in_order


def test_values_are_numbered_in_the_order_in_which_they_are_bound() -> None:
    assert number_marks("SELECT ? FROM t WHERE a = ? LIMIT ?") == (
        "SELECT $1 FROM t WHERE a = $2 LIMIT $3"
    )
    assert number_marks("SELECT 1") == "SELECT 1"
