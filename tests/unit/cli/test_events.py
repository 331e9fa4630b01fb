"""The event log on the command line."""

from __future__ import annotations

from tests.unit.cli.answers import event, log
from tests.unit.cli.product import Desk, Events, Refusal, Request


def test_events_are_json_lines_or_lines_for_people(desk: Desk) -> None:
    rows = [event(1, "run.started", run_id="r"), event(2, "run.finished", text="a\x1b[2J")]
    desk.product.routes["GET", "/v1/events"] = log(*rows)
    assert desk.type("events", "tail", "--actor", "agent/agent-1", "--json").json_lines() == rows
    outcome = desk.type("events", "tail", "--actor", "agent/agent-1", "--after", "1")
    assert "run.finished" in outcome.stdout
    assert "run.started" not in outcome.stdout
    assert "\x1b" not in outcome.stdout


def test_following_goes_on_where_the_pages_ended(desk: Desk) -> None:
    first = event(1, "a")
    asked: list[dict[str, str]] = []

    def answer(request: Request) -> object:
        asked.append(request.query)
        if "follow" in request.query:
            return Events([event(2, "b")])
        return {"events": [first], "next_after": 1}

    desk.product.routes["GET", "/v1/events"] = answer
    outcome = desk.type("events", "tail", "--follow", "--json")
    assert [row["kind"] for row in outcome.json_lines()] == ["a", "b"]
    assert asked[1] == {"after": "101", "follow": "true"}, "without an actor, positions count"


def test_a_cursor_beyond_the_log_is_bad_input(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/events"] = Refusal(400, "cursor_ahead", "after: is 9")
    outcome = desk.type("events", "tail", "--after", "9", "--json")
    assert outcome.status == 2
    assert outcome.error()["code"] == "cursor_ahead"
