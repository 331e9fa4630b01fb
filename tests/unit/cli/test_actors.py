"""Actors of one's own classes on the command line."""

from __future__ import annotations

import pytest

from kelpie.cli.world import ServedProgram
from tests.unit.cli.product import Desk

ADD = {
    "name": "add",
    "kind": "command",
    "arguments": {
        "$ref": "#/$defs/Counter.add",
        "$defs": {"Counter.add": {"properties": {"amount": {}, "note": {}}}},
    },
}


def test_a_program_is_served_from_the_directory_of_the_command(desk: Desk) -> None:
    assert desk.type("serve", "app.py").status == 0
    assert desk.type("serve").status == 0
    assert desk.programs == [ServedProgram("app.py", desk.directory), None]


def test_a_call_carries_its_arguments_its_key_and_its_deadline(desk: Desk) -> None:
    desk.product.routes["POST", "/v1/actors/Counter/a/add"] = {"result": [1, None]}
    words = ("actors", "call", "Counter/a", "add", '{"amount": 1}')
    shown = desk.type(*words, "--key", "k", "--timeout-ms", "9")
    assert (shown.status, shown.stdout) == (0, "[1, null]\n")
    (request,) = desk.product.requests
    assert request.body == {"amount": 1}
    assert request.headers["idempotency-key"] == "k"
    assert request.headers["x-kelpie-timeout-ms"] == "9"
    assert desk.type(*words, "--json").json() == {"result": [1, None]}
    assert "idempotency-key" not in desk.product.requests[-1].headers


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("call", "Counter", "add"), "ACTOR"),
        (("show", "/a"), "ACTOR"),
        (("call", "Counter/a", "add", "[1]"), "ARGUMENTS"),
        (("call", "Counter/a", "add", "{"), "ARGUMENTS"),
        (("call", "Counter/a", "add", '{"amount": "\udcff"}'), "ARGUMENTS"),
        (("submit", "Counter/a", "add", r'{"amount": "\ud800"}'), "ARGUMENTS"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_sent(
    desk: Desk, words: tuple[str, ...], named: str
) -> None:
    outcome = desk.type("actors", *words, "--json")
    assert (outcome.status, outcome.error()["code"]) == (2, "invalid_field")
    assert outcome.error()["message"].startswith(named)
    assert desk.product.requests == []


def test_a_key_with_odd_characters_stays_one_segment_of_the_path(desk: Desk) -> None:
    desk.type("actors", "show", "Counter/a b?c", "--json")
    assert desk.product.requests[0].path == "/v1/actors/Counter/a b?c"


def test_the_types_are_shown_with_the_names_of_their_arguments(desk: Desk) -> None:
    kinds = [{"name": "Counter", "methods": [ADD]}]
    desk.product.routes["GET", "/v1/actor-types"] = {"types": kinds}
    assert "add(amount, note)" in desk.type("actors", "types").stdout
    assert desk.type("actors", "types", "--json").json() == kinds


def test_lists_are_tables_for_people_and_rows_for_programs(desk: Desk) -> None:
    row = {"type": "Counter", "key": "a", "version": 3, "paused": True, "updated_ms": 1_000}
    letter = {
        "id": 7,
        "sender": "Counter/a",
        "receiver": "Counter/b",
        "attempts": 5,
        "at_ms": 1_000,
        "error": "it failed\nTraceback: deep inside",
        "body": None,
    }
    desk.product.routes["GET", "/v1/actors"] = {"actors": [row], "next_after": None}
    desk.product.routes["GET", "/v1/dead-letters"] = {"dead_letters": [letter]}
    listed = desk.type("actors", "list").stdout
    assert "Counter/a" in listed
    assert "paused" in listed
    assert desk.type("actors", "list", "--json").json() == [row]
    shown = desk.type("actors", "dead-letters").stdout
    assert "it failed" in shown
    assert "deep inside" not in shown
    assert desk.type("actors", "dead-letters", "--json").json() == [letter]


def test_care_says_what_became_of_the_actor(desk: Desk) -> None:
    path = "/v1/actor-admin/Counter/a"
    desk.product.routes |= {
        ("POST", f"{path}/pause"): {"paused": True, "mailbox": 2},
        ("POST", f"{path}/resume"): {"paused": False, "mailbox": 0},
        ("POST", f"{path}/kill"): {"killed": False},
        ("POST", "/v1/dead-letters/7/replay"): {"id": 7},
    }
    said = {
        verb: desk.type("actors", verb, "Counter/a").stderr for verb in ("pause", "resume", "kill")
    }
    assert said["pause"] == "Counter/a is paused; 2 calls wait\n"
    assert said["resume"] == "Counter/a goes on\n"
    assert said["kill"] == "Counter/a was not in memory\n"
    assert desk.type("actors", "replay", "7").stderr == "dead letter 7 is on its way again\n"
    assert desk.type("actors", "replay", "7", "--json").json() == {"id": 7}
