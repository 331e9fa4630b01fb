"""A model that fails or answers garbage ends the step typed, and the conversation goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.support.node import Node, Server
from tests.e2e.support.scripts import call, on, say

UNAUTHORIZED = {"status": 401, "body": {"error": {"message": "no such key"}}}
OVERLOADED = {"status": 503, "headers": {"retry-after": "0"}}
LISTS = [call("list_files")] * 42
LONG = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def server(shared: Node) -> Server:
    shared.script(
        on("refuse", fail=UNAUTHORIZED),
        on("overloaded once", fail=OVERLOADED, times=1),
        on("overloaded", text="At last."),
        on("cut", text=LONG, cut_after=2),
        on("break", text=LONG, error_after=2),
        on("malformed", tool_calls=[{"name": "read_file", "arguments": '{"path": oops'}]),
        on("silent"),
        on("many once", tool_calls=LISTS[:41]),
        on("many", tool_calls=LISTS),
        # The model is told what was wrong with its last answer.
        {"when": {"contains": "the answer was empty"}},
        {"when": {"contains": "41 tool calls at once"}, "text": "Fewer."},
        {"when": {"contains": "tool calls at once"}, "tool_calls": LISTS},
        {"when": {"role": "tool"}, "text": "I see."},
        say("Hello to you."),
    )
    return shared.serve()


def create(server: Server) -> str:
    return str(server.post("/v1/agents", {"name": "garbage"})["id"])


def assert_usable(server: Server, agent_id: str) -> None:
    """The next message gets its answer, and nothing of the failed run hangs."""
    answer = server.post(f"/v1/agents/{agent_id}/messages", {"input": "hello"})
    assert answer["messages"][-1]["content"] == "Hello to you."
    assert server.stats()["effects_open"] == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("refuse", "llm_api_error"),
        ("silent", "invalid_llm_response"),
        ("many", "invalid_llm_response"),
    ],
)
@pytest.mark.requirement("MODEL-GARBAGE")
def test_a_run_that_cannot_be_answered_fails_typed(server: Server, text: str, reason: str) -> None:
    agent_id = create(server)
    response = server.ask("POST", f"/v1/agents/{agent_id}/messages", json={"input": text})
    assert response.status_code == 502, response.text
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert error["code"] == "run_failed"
    assert error["fields"]["stop_reason"] == reason
    run = server.get(f"/v1/runs/{error['fields']['run_id']}")
    assert (run["status"], run["stop_reason"]) == ("failed", reason)
    assert_usable(server, agent_id)


@pytest.mark.parametrize("text", ["break", "cut"])
def test_a_stream_that_breaks_ends_with_a_typed_event(server: Server, text: str) -> None:
    agent_id = create(server)
    path = f"/v1/agents/{agent_id}/messages/stream"
    response = server.ask("POST", path, json={"input": text, "stream_tokens": True})
    assert response.status_code == 200
    assert '"message_type":"error_message"' in response.text
    assert response.text.rstrip().endswith("data: [DONE]")
    assert_usable(server, agent_id)


@pytest.mark.parametrize(
    ("text", "answered"),
    [("overloaded once", "At last."), ("many once", "Fewer.")],
)
def test_a_passing_failure_is_mended_within_the_run(
    server: Server, text: str, answered: str
) -> None:
    agent_id = create(server)
    answer = server.post(f"/v1/agents/{agent_id}/messages", {"input": text})
    assert answer["messages"][-1]["content"] == answered
    assert_usable(server, agent_id)


def test_arguments_that_are_no_json_come_back_to_the_model_as_an_error(server: Server) -> None:
    agent_id = create(server)
    answer: dict[str, Any] = server.post(f"/v1/agents/{agent_id}/messages", {"input": "malformed"})
    (returned,) = [m for m in answer["messages"] if m["message_type"] == "tool_return_message"]
    assert returned["status"] == "error"
    assert answer["messages"][-1]["content"] == "I see."
    assert_usable(server, agent_id)
