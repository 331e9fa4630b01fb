"""Callers as senders, and errors as data: both come back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.actors.callers import caller_id, principal_of
from kelpie.actors.described import Described, describe
from kelpie.core.errors import (
    ConflictError,
    KelpieError,
    LimitExceededError,
    ModelError,
    NotFoundError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId


@given(st.text(max_size=20))
def test_every_principal_has_a_sender_and_comes_back_from_it(principal: str) -> None:
    sender = caller_id(TENANT_DEFAULT, principal)
    assert principal_of(sender) == principal
    assert principal_of(ActorId.parse(str(sender))) == principal


def test_known_callers_are_readable_and_actors_are_none() -> None:
    assert caller_id(TENANT_DEFAULT, "key:0").key == "p:key:0"
    assert principal_of(ActorId(TENANT_DEFAULT, "Counter", "p:key:0")) is None
    with pytest.raises(LimitExceededError):
        caller_id(TENANT_DEFAULT, "x" * 300)


def test_an_error_comes_back_with_its_class_its_message_and_its_fields() -> None:
    for error in (ConflictError("no", day="monday"), NotFoundError("call", "x")):
        again = describe(error).restore()
        assert type(again) is type(error)
        assert (again.message, again.fields) == (error.message, error.fields)
    model = describe(ModelError("auth", "m")).restore()
    assert isinstance(model, ModelError)
    assert model.reason == "auth"


def test_an_error_of_an_unknown_code_keeps_it() -> None:
    error = Described(code="new", message="m", retriable=True).restore()
    assert type(error) is not KelpieError
    assert (error.code, error.retriable, error.message) == ("new", True, "m")


def test_what_no_store_takes_is_escaped_and_what_is_long_is_cut() -> None:
    described = describe(ConflictError("x\ud800" + "y" * 100_000, name="\ud800"))
    assert described.message.startswith("x\\ud800y")
    assert len(described.message) < 20_000
    assert described.fields == {"name": "\\ud800"}
