"""Waits are bounded, jittered, and as long as a provider asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.limits import MODEL_RETRY_DELAY_MS_MAX
from kelpie.llm.retry import RetryPolicy, read_retry_after_ms

FRACTIONS = st.floats(0, 1, exclude_max=True)


@given(retry=st.integers(1, 60), fraction=FRACTIONS)
def test_a_wait_is_drawn_from_a_bounded_range(retry: int, fraction: float) -> None:
    delay_ms = RetryPolicy().delay_ms(retry=retry, asked_ms=None, fraction=fraction)
    assert 0 <= delay_ms <= MODEL_RETRY_DELAY_MS_MAX


@given(asked_ms=st.integers(0, 10**9), fraction=FRACTIONS)
def test_a_wait_is_never_shorter_than_asked(asked_ms: int, fraction: float) -> None:
    delay_ms = RetryPolicy().delay_ms(retry=1, asked_ms=asked_ms, fraction=fraction)
    assert asked_ms <= delay_ms <= asked_ms + 250


@pytest.mark.parametrize(
    ("headers", "wanted_ms"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2000),
        ({"retry-after": "0.25"}, 250),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 9000),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "Thu, 99 Foo 1970"}, None),
        ({"retry-after-ms": "junk", "retry-after": "1"}, 1000),
    ],
)
def test_the_header_is_read_in_all_its_forms(
    headers: dict[str, str], wanted_ms: int | None
) -> None:
    assert read_retry_after_ms(headers, now_ms=1000) == wanted_ms


@given(st.text(max_size=40))
def test_no_header_breaks_the_reader(text: str) -> None:
    wait_ms = read_retry_after_ms({"retry-after": text}, now_ms=0)
    assert wait_ms is None or wait_ms >= 0
