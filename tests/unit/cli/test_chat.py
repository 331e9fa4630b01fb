"""The conversation: streams, cards, answers."""

from __future__ import annotations

from typing import Any

from tests.unit.cli.answers import AGENT, Question, event, log
from tests.unit.cli.product import Desk, Events, Refusal, Request

STREAM = "/v1/agents/agent-1/messages/stream"


def _piece(text: str, otid: str = "o-1") -> dict[str, Any]:
    return {"message_type": "assistant_message", "id": "m-1", "otid": otid, "content": text}


def _stop(reason: str) -> dict[str, Any]:
    return {"message_type": "stop_reason", "stop_reason": reason}


def _desk(desk: Desk, *stream: Any, events: tuple[dict[str, Any], ...] = ()) -> Question:
    question = Question(desk)
    desk.product.routes["GET", "/v1/agents/"] = [AGENT]
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    desk.product.routes["POST", STREAM] = Events([*stream, "[DONE]"])
    desk.product.routes["GET", "/v1/events"] = log(*events)
    return question


def _stored(sequence: int, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": f"m-{sequence}",
        "role": "assistant",
        "content": text,
        "tool_calls": [],
    }
    return event(sequence, "message", **message)


FINISHED = {"run_id": "run-1", "stop_reason": "end_turn", "error": ""}


def test_pieces_of_an_answer_become_one_line(desk: Desk) -> None:
    question = _desk(desk, _piece("He"), _piece("llo\x07"), _stop("end_turn"))
    question.effect["state"] = "done"
    outcome = desk.type("chat", "ada", stdin="hi\n")
    assert outcome.status == 0
    assert outcome.stdout == "agent> Hello\\x07\n"
    sent = next(request for request in desk.product.requests if request.path == STREAM)
    assert sent.body["messages"] == [{"role": "user", "content": "hi"}]
    assert sent.body["stream_tokens"] is True
    assert desk.product.drives == [True]


def test_a_new_name_becomes_an_agent_with_the_workspace(desk: Desk) -> None:
    _desk(desk)
    desk.product.routes["GET", "/v1/agents/"] = []
    desk.product.routes["GET", "/v1/approvals"] = {"effects": []}
    desk.product.routes["POST", "/v1/agents/"] = AGENT
    desk.type("chat", "ada", "--workspace", "w", "--model", "a/b", stdin="")
    created = next(request for request in desk.product.requests if request.method == "POST")
    expected = {"name": "ada", "workspace": str(desk.directory / "w"), "model": "a/b"}
    assert created.body == expected


def test_options_that_the_agent_does_not_have_are_refused_rather_than_ignored(desk: Desk) -> None:
    _desk(desk)
    desk.product.routes["GET", "/v1/agents/"] = [AGENT | {"workspace": "/srv/a"}]
    desk.product.routes["GET", "/v1/approvals"] = {"effects": []}
    for option, value, has, step in (
        ("--workspace", "/srv/b", "/srv/a", "kelpie chat NAME --workspace /srv/b"),
        ("--model", "a/b", "openai/x", "kelpie agents update agent-1 --model a/b"),
    ):
        refused = desk.type("chat", "ada", option, value, stdin="")
        assert refused.status == 5
        assert f"{option}: 'ada' exists, with {has}" in refused.stderr
        assert f"next: {step}" in refused.stderr
    same = desk.type("chat", "ada", "--workspace", "/srv/a", stdin="")
    assert same.status == 0
    assert "ada (openai/x), in /srv/a, through" in same.stderr


def test_the_name_of_a_call_stands_apart_from_its_arguments(desk: Desk) -> None:
    def piece(**call: str) -> dict[str, Any]:
        return {"message_type": "tool_call_message", "id": "m-1", "otid": "o-1", "tool_call": call}

    pieces = (piece(name="read_file"), piece(arguments='{"path":'), piece(arguments=' "a"}'))
    question = _desk(desk, *pieces, _stop("end_turn"))
    question.effect["state"] = "done"
    assert desk.type("chat", "ada", stdin="hi\n").stdout == 'calls> read_file {"path": "a"}\n'


def test_a_card_is_shown_and_asked_and_the_run_followed(desk: Desk) -> None:
    """The stream ends at the question; what follows the answer comes from the log."""
    after = (_stored(2, "Done."), event(3, "run.finished", run=FINISHED))
    waiting = event(1, "run.waiting", run_id="run-1", effect_id="effect-1")
    question = _desk(desk)
    question.effect["state"] = "done"

    def stream(_: Request) -> Events:
        question.effect["state"] = "waiting"
        asks = {"message_type": "approval_request_message", "id": "m-9", "tool_calls": []}
        return Events([_piece("Let me write."), asks, _stop("requires_approval"), "[DONE]"])

    def events(request: Request) -> Any:
        known = (waiting, *after) if question.answers else (waiting,)
        source = log(*known)
        assert callable(source)
        return source(request)

    desk.product.routes["POST", STREAM] = stream
    desk.product.routes["GET", "/v1/events"] = events
    outcome = desk.type("chat", "ada", stdin="write it\nwhat\na\n")
    assert outcome.stdout == "agent> Let me write.\nagent> Done.\n"
    assert question.answers == [{"reason": "", "digest": "sha256:aa"}]
    assert "| Rewrite notes.txt" in outcome.stderr
    assert outcome.stderr.count("[a]pprove, [d]eny or [s]kip?") == 2, "it asks until it understands"


def test_what_waits_already_is_asked_first(desk: Desk) -> None:
    question = _desk(desk)

    def events(request: Request) -> Any:
        source = log(*((event(5, "run.finished", run=FINISHED),) if question.answers else ()))
        assert callable(source)
        return source(request)

    desk.product.routes["GET", "/v1/events"] = events
    outcome = desk.type("chat", "agent-1", stdin="d\n")
    assert question.effect["state"] == "denied"
    assert outcome.status == 0


def test_a_skipped_card_goes_on_waiting(desk: Desk) -> None:
    question = _desk(desk)
    outcome = desk.type("chat", "ada", stdin="s\n")
    assert question.answers == []
    assert "It goes on waiting: kelpie approvals approve effect-1" in outcome.stderr


def test_a_refused_message_leaves_the_conversation_usable(desk: Desk) -> None:
    question = _desk(desk)
    question.effect["state"] = "done"
    answers: list[Any] = [
        Refusal(502, "model_failed", "no quota"),
        Events([_piece("better"), _stop("end_turn")]),
    ]
    desk.product.routes["POST", STREAM] = lambda _: answers.pop(0)
    outcome = desk.type("chat", "ada", stdin="one\ntwo\n")
    assert "kelpie: no quota" in outcome.stderr
    assert outcome.stdout == "agent> better\n"


def test_json_prints_the_events_as_lines(desk: Desk) -> None:
    ping = {"message_type": "ping", "id": "p"}
    question = _desk(desk, ping, _piece("x"), _stop("end_turn"))
    question.effect["state"] = "done"
    outcome = desk.type("chat", "ada", "--json", stdin="hi\n")
    assert outcome.json_lines() == [_piece("x"), _stop("end_turn")]


def test_a_message_to_an_agent_that_waits_brings_up_its_card(desk: Desk) -> None:
    question = _desk(desk)
    question.effect["state"] = "done"

    def refuse(_: Request) -> Refusal:
        question.effect["state"] = "waiting"
        return Refusal(409, "pending_approval", "the agent waits for an approval")

    desk.product.routes["POST", STREAM] = refuse
    outcome = desk.type("chat", "ada", stdin="hi\ns\n")
    assert "the agent waits for an approval" in outcome.stderr
    assert "| Rewrite notes.txt" in outcome.stderr


def _log_after_answer(desk: Desk, question: Question, *events: dict[str, Any]) -> None:
    def answer(request: Request) -> Any:
        source = log(*(events if question.answers else ()))
        assert callable(source)
        return source(request)

    desk.product.routes["GET", "/v1/events"] = answer


def test_what_the_log_tells_after_an_answer_is_shown_in_full(desk: Desk) -> None:
    question = _desk(desk)
    call = {"id": "c", "name": "read_file", "arguments": "{}"}
    messages: tuple[dict[str, Any], ...] = (
        {"id": "m-1", "role": "user", "content": "not again"},
        {"id": "m-2", "role": "assistant", "content": "", "tool_calls": [call]},
        {"id": "m-3", "role": "tool", "content": "text"},
    )
    rows = [event(number, "message", **message) for number, message in enumerate(messages, 1)]
    failed = {"run_id": "run-1", "stop_reason": "error", "error": "no quota"}
    _log_after_answer(desk, question, *rows, event(4, "run.finished", run=failed))
    lines = desk.type("chat", "ada", stdin="a\n").stdout.splitlines()
    assert lines == ["calls> read_file {}", "returns> text", "error> no quota"]


def test_json_shows_the_log_too(desk: Desk) -> None:
    question = _desk(desk)
    finished = event(2, "run.finished", run=FINISHED)
    _log_after_answer(desk, question, _stored(1, "Done."), finished)
    lines = desk.type("chat", "ada", "--json", stdin="d\n").json_lines()
    assert lines[0]["content"] == "Done."
    assert lines[1] == _stop("end_turn")


def test_a_server_that_stops_ends_the_conversation_with_a_next_step(desk: Desk) -> None:
    _desk(desk)
    desk.product.routes["GET", "/v1/events"] = lambda request: (
        Events([]) if "follow" in request.query else {"events": [], "next_after": 0}
    )
    outcome = desk.type("chat", "ada", stdin="a\n")
    assert outcome.status == 69
    assert "next: kelpie chat" in outcome.stderr
