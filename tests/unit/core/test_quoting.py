"""Untrusted text inside a message stays inside it."""

from __future__ import annotations

import pytest

from kelpie.core.quoting import QUOTED_CHARS_MAX, quote_text


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[2J", "a\u202eb", "\udcff", "\x9b1m", "\u2028"])
def test_what_could_leave_its_line_is_escaped(hostile: str) -> None:
    quoted = quote_text(hostile)
    assert hostile not in quoted
    assert quoted.isprintable()
    assert quoted.encode().decode() == quoted


def test_text_of_people_stays_as_they_wrote_it() -> None:
    assert quote_text("Übung/漢字.txt") == "'Übung/漢字.txt'"


def test_a_long_text_is_cut_and_says_so() -> None:
    assert quote_text("x" * QUOTED_CHARS_MAX) == repr("x" * QUOTED_CHARS_MAX)
    assert quote_text("x" * (QUOTED_CHARS_MAX + 1)) == repr("x" * QUOTED_CHARS_MAX) + "…"
