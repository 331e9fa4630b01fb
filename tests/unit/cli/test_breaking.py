"""Prose breaks between words; what does not fit in any other way breaks anywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kelpie.app.text import break_words, display_width


def test_prose_breaks_after_a_space() -> None:
    pieces = list(break_words("put back the former content", 12))
    assert pieces == ["put back ", "the former ", "content"]


def test_a_word_that_is_too_long_breaks_where_the_line_ends() -> None:
    assert list(break_words("see effect-0123456789", 8)) == [
        "see ",
        "effect-0",
        "123456789"[:8],
        "9",
    ]


@given(text=st.text(alphabet="ab 界\u0301"), width=st.integers(2, 9))
def test_nothing_is_lost_and_no_line_is_too_wide(text: str, width: int) -> None:
    pieces = list(break_words(text, width))
    assert "".join(pieces) == text
    assert all(display_width(piece) <= width for piece in pieces)
