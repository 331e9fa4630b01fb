"""What is said of an exception of an actor's own code."""

from __future__ import annotations

import json

from kelpie.actors.failures import describe_failure, find_place
from kelpie.core.errors import ActorFailedError, InvalidFieldError
from kelpie.core.ids import ActorId


def read_wrongly() -> None:
    json.loads("{")


def raised_by(act: object) -> BaseException:
    assert callable(act)
    try:
        act()
    except (ValueError, InvalidFieldError) as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_place_is_the_handlers_own_line_and_not_the_librarys() -> None:
    place = find_place(raised_by(read_wrongly))
    assert place.startswith("test_failures.py:")
    assert place.endswith(" in read_wrongly")


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert not find_place(ValueError("made, not raised"))


def test_a_refusal_of_the_product_is_placed_where_the_user_asked() -> None:
    assert find_place(raised_by(lambda: ActorId.parse("a"))).endswith(" in <lambda>")


def test_a_bug_is_described_with_its_traceback_and_text_that_no_store_takes_is_escaped() -> None:
    failure = ActorFailedError("it failed: \udcff", actor="default/A/a")
    failure.__cause__ = raised_by(read_wrongly)
    text = describe_failure(failure)
    assert "\\udcff" in text
    assert "in read_wrongly" in text
    text.encode()
