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


def test_events_for_people_name_the_actor_once_and_say_what_happened(desk: Desk) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    call = {"name": "write_file", "arguments": "{}"}
    rows = [
        event(1, "message", role="user", content="hello\nthere"),
        event(2, "message", role="assistant", content="", tool_calls=[call]),
        event(3, "step.finished", step_id="s", usage=usage),
        event(4, "effect.waiting", summary="write a", effect_id="effect-1", note=""),
        event(5, "run.finished", run={"status": "failed", "stop_reason": "error", "error": "no"}),
        event(6, "unit.finished", "plan/p", status="done", path="a", error=""),
        event(8, "unit.started", "shop/s", message="of another kind"),
        event(7, "counted", "plan/p", plan_id="p", run_id="r", total=3, empty="", names=["x"]),
    ]
    desk.product.routes["GET", "/v1/events"] = {"events": rows}
    lines = desk.type("events", "tail").stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "agent/agent-1  2023-11-14",
        "plan/p  2023-11-14",
        "shop/s  2023-11-14",
        "plan/p  2023-11-14",
    ]
    said = [line.split(maxsplit=3)[2:] for line in lines if line.startswith(" ")]
    assert said == [
        ["message", "user: hello\\nthere"],
        ["message", "assistant: write_file {}"],
        ["step.finished", "7 tokens in, 2 out"],
        ["effect.waiting", "write a  effect-1"],
        ["run.finished", "failed, error, no"],
        ["unit.finished", "done a"],
        ["unit.started", "message=of another kind"],
        ["counted", 'total=3 names=["x"] run_id=r'],
    ]


def test_the_number_before_an_event_is_what_after_takes(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/events"] = {"events": [event(4, "a")]}
    everybody = desk.type("events", "tail").stdout.splitlines()[1]
    one = desk.type("events", "tail", "--actor", "agent/agent-1").stdout.splitlines()[1]
    assert (everybody.split()[0], one.split()[0]) == ("104", "4")
