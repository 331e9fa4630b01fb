"""Submitted calls on the command line."""

from __future__ import annotations

import pytest

from tests.unit.cli.product import Desk

CALL = {
    "call_id": "call-1",
    "actor": "Counter/a",
    "method": "add",
    "state": "completed",
    "principal": "local",
    "created_ms": 1_000,
    "ended_ms": 2_000,
    "expires_ms": 3_000,
    "result": 5,
    "error": None,
}


def test_a_call_is_handed_in_with_its_arguments_and_its_key(desk: Desk) -> None:
    desk.product.routes["POST", "/v1/actors/Counter/a/add"] = CALL
    words = ("actors", "submit", "Counter/a", "add", '{"amount": 1}', "--key", "k")
    assert desk.type(*words).stdout == "call-1\n"
    (request,) = desk.product.requests
    assert request.body == {"amount": 1}
    assert request.headers["prefer"] == "respond-async"
    assert request.headers["idempotency-key"] == "k"
    assert desk.type(*words, "--json").json() == CALL


def test_a_query_cannot_be_handed_in(desk: Desk) -> None:
    desk.product.routes["POST", "/v1/actors/Counter/a/total"] = {"result": 1}
    outcome = desk.type("actors", "submit", "Counter/a", "total", "--json")
    assert (outcome.status, outcome.error()["code"]) == (2, "invalid_field")


def test_a_call_is_shown_with_what_it_came_to(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/calls/call-1"] = CALL
    shown = desk.type("calls", "show", "call-1", "--wait", "2.5")
    assert "completed" in shown.stdout
    assert desk.product.requests[-1].query["wait_s"] == "2.5"
    assert desk.type("calls", "show", "call-1", "--json").json() == CALL


def test_calls_are_a_table_for_people_and_rows_for_programs(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/calls"] = {"calls": [CALL], "next_after": None}
    asked = ("calls", "list", "--actor", "Counter/a", "--state", "completed", "--limit", "7")
    assert "call-1" in desk.type(*asked).stdout
    query = desk.product.requests[-1].query
    assert {name: query[name] for name in ("actor", "state", "limit")} == {
        "actor": "Counter/a",
        "state": "completed",
        "limit": "7",
    }
    assert desk.type(*asked, "--json").json() == [CALL]


@pytest.mark.parametrize("words", [("--json",), ()])
def test_a_call_is_taken_back(desk: Desk, words: tuple[str, ...]) -> None:
    taken = CALL | {"state": "cancelled", "result": None}
    desk.product.routes["POST", "/v1/calls/call-1/cancel"] = taken
    outcome = desk.type("calls", "cancel", "call-1", *words)
    assert outcome.status == 0
    if words:
        assert outcome.json() == taken
    else:
        assert outcome.stderr == "call-1 is cancelled\n"
