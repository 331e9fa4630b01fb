"""Agents and messages on the command line."""

from __future__ import annotations

import pytest

from tests.unit.cli.product import Desk, Events, Refusal

AGENT = {"id": "agent-1", "name": "ada", "model": "openai/x", "workspace": "/w"}
ANSWER = {
    "messages": [
        {"message_type": "reasoning_message", "id": "m-1", "reasoning": "hm"},
        {
            "message_type": "tool_call_message",
            "id": "m-2",
            "tool_calls": [{"name": "read_file", "arguments": "{}", "tool_call_id": "c"}],
        },
        {"message_type": "tool_return_message", "id": "m-3", "tool_return": "a\nb"},
        {
            "message_type": "assistant_message",
            "id": "m-4",
            "content": [{"type": "text", "text": "hello"}, {"type": "image"}],
        },
    ],
    "stop_reason": {"message_type": "stop_reason", "stop_reason": "end_turn"},
}


def test_creating_sends_an_absolute_workspace_and_prints_the_id(desk: Desk) -> None:
    desk.product.routes["POST", "/v1/agents/"] = AGENT
    desk.product.routes["GET", "/v1/agents/"] = [AGENT]
    words = ("--workspace", "w", "--model", "openai/x", "--block", "human=Ann", "--tool", "t")
    outcome = desk.type("agents", "create", "ada", *words, "--system", "be brief")
    assert (outcome.status, outcome.stdout) == (0, "agent-1\n")
    assert desk.product.requests[0].body == {
        "name": "ada",
        "workspace": str(desk.directory / "w"),
        "model": "openai/x",
        "system": "be brief",
        "tools": ["t"],
        "memory_blocks": [{"label": "human", "value": "Ann"}],
    }
    assert desk.product.drives == [False]
    assert desk.type("agents", "create", "ada", "--json").json() == AGENT


def test_a_malformed_block_is_bad_input(desk: Desk) -> None:
    outcome = desk.type("agents", "create", "ada", "--block", "human")
    assert outcome.status == 2
    assert "--block: 'human' must read LABEL=VALUE" in outcome.stderr


def test_listing_prints_a_table_or_json(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/"] = [AGENT]
    outcome = desk.type("agents", "list", "--after", "agent-0")
    assert outcome.stdout == "ID       MODEL     NAME\nagent-1  openai/x  ada\n"
    assert desk.product.requests[0].query == {"limit": "50", "after": "agent-0"}
    assert desk.type("agents", "list", "--json").json() == [AGENT]


def test_an_agent_is_found_by_name_or_id(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/"] = [AGENT]
    whole = AGENT | {"tools": [{"name": "read_file"}], "blocks": [{"label": "a", "value": "b"}]}
    desk.product.routes["GET", "/v1/agents/agent-1"] = whole
    assert "read_file" in desk.type("agents", "show", "ada").stdout
    assert desk.type("agents", "show", "agent-1", "--json").json() == whole


def test_an_unknown_name_exits_4_and_says_what_to_run(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/"] = []
    outcome = desk.type("agents", "show", "bob", "--json")
    assert outcome.status == 4
    assert outcome.error() == {
        "code": "not_found",
        "message": "agent 'bob' does not exist",
        "fields": {"kind": "agent", "name": "bob"},
        "exit_status": 4,
        "next": "kelpie agents list",
    }


def test_a_name_of_several_agents_is_refused(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/"] = [AGENT, AGENT | {"id": "agent-2"}]
    outcome = desk.type("agents", "show", "ada")
    assert outcome.status == 5
    assert "(agent-1, agent-2); give an id" in outcome.stderr


def test_deleting_asks_for_yes_where_nobody_can_be_asked(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    desk.product.routes["DELETE", "/v1/agents/agent-1"] = None
    assert desk.type("agents", "delete", "agent-1").status == 64
    assert desk.product.requests == []
    outcome = desk.type("agents", "delete", "agent-1", "--yes", "--json")
    assert outcome.json() == {"id": "agent-1", "deleted": True}
    assert "deleted agent-1" in desk.type("agents", "delete", "agent-1", "--yes").stderr


def test_sending_drives_the_product_and_prints_the_answer(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    desk.product.routes["POST", "/v1/agents/agent-1/messages"] = ANSWER
    outcome = desk.type("messages", "send", "agent-1", "-", stdin="hi there")
    assert desk.product.drives == [True]
    assert desk.product.requests[-1].body["messages"] == [{"role": "user", "content": "hi there"}]
    assert outcome.stdout.splitlines() == [
        "thinks: hm",
        "calls: read_file {}",
        "returns: a",
        "         b",
        "agent: hello[image]",
    ]
    assert desk.type("messages", "send", "agent-1", "hi", "--json").json() == ANSWER


def test_a_run_that_waits_for_a_person_exits_3(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    waiting = {"messages": [], "stop_reason": {"stop_reason": "requires_approval"}}
    desk.product.routes["POST", "/v1/agents/agent-1/messages"] = waiting
    outcome = desk.type("messages", "send", "agent-1", "hi")
    assert outcome.status == 3
    assert "kelpie approvals list" in outcome.stderr


def test_streaming_prints_json_lines(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    events = [*ANSWER["messages"], ANSWER["stop_reason"], "[DONE]"]
    desk.product.routes["POST", "/v1/agents/agent-1/messages/stream"] = Events(events)
    outcome = desk.type("messages", "send", "agent-1", "hi", "--stream", "--json")
    assert outcome.json_lines() == events[:-1]
    assert "agent: hello" in desk.type("messages", "send", "agent-1", "hi", "--stream").stdout


def test_a_run_that_fails_in_its_stream_fails_the_command(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    failure = {"message_type": "error_message", "message": "no quota", "run_id": "run-1"}
    desk.product.routes["POST", "/v1/agents/agent-1/messages/stream"] = Events([failure])
    outcome = desk.type("messages", "send", "agent-1", "hi", "--stream")
    assert outcome.status == 69
    assert outcome.stderr == "kelpie: no quota\n  next: kelpie doctor\n"
    assert outcome.stdout == "", "said once"


def test_messages_are_listed_oldest_first(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    rows = [
        {"message_type": "assistant_message", "content": "two"},
        {"message_type": "user_message", "content": "one"},
    ]
    desk.product.routes["GET", "/v1/agents/agent-1/messages"] = rows
    assert desk.type("messages", "list", "agent-1").stdout == "you: one\nagent: two\n"
    assert desk.type("messages", "list", "agent-1", "--json").json() == rows[::-1]
    desk.type("messages", "list", "agent-1", "--after", "m-1")
    assert desk.product.requests[-1].query["order"] == "asc"


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal(422, "invalid_field", "name: too long", {"field": "name"}), 2),
        (Refusal(401, "unauthorized", "send a key"), 6),
        (Refusal(503, "store_held", "held"), 73),
        (Refusal(503, "draining", "later"), 75),
        (Refusal(413, "body_too_large", "too large"), 2),
        (Refusal(500, "internal", "a bug"), 70),
    ],
)
def test_a_refusal_keeps_its_code_message_and_exit_status(
    desk: Desk, refusal: Refusal, status: int
) -> None:
    desk.product.routes["POST", "/v1/agents/"] = refusal
    outcome = desk.type("agents", "create", "ada", "--json")
    assert outcome.status == status
    error = outcome.error()
    assert (error["code"], error["message"]) == (refusal.code, refusal.message)
    assert outcome.stdout == ""


def test_an_answer_that_is_no_list_is_a_typed_error(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/"] = {"unexpected": 1}
    assert desk.type("agents", "list").status == 70


def test_a_second_agent_of_a_name_is_made_and_said_to_be_one(desk: Desk) -> None:
    desk.product.routes["POST", "/v1/agents/"] = AGENT
    desk.product.routes["GET", "/v1/agents/"] = [AGENT, AGENT | {"id": "agent-0"}]
    outcome = desk.type("agents", "create", "ada")
    assert (outcome.status, outcome.stdout) == (0, "agent-1\n")
    assert "another agent is called 'ada' as well (agent-0)" in outcome.stderr
    assert "kelpie agents update agent-1 --name NAME" in outcome.stderr


def test_an_agent_gets_another_model_and_keeps_the_rest(desk: Desk) -> None:
    changed = AGENT | {"model": "openai/y"}
    desk.product.routes["GET", "/v1/agents/"] = [AGENT]
    desk.product.routes["PATCH", "/v1/agents/agent-1"] = changed
    outcome = desk.type("agents", "update", "ada", "--model", "openai/y")
    assert outcome.status == 0
    assert desk.product.requests[-1].body == {"model": "openai/y"}
    assert "openai/y" in outcome.stdout
    assert desk.type("agents", "update", "ada", "--system", "x", "--json").json() == changed


def test_an_update_that_changes_nothing_is_a_wrong_command_line(desk: Desk) -> None:
    outcome = desk.type("agents", "update", "ada")
    assert outcome.status == 64
    assert "--name, --model or --system" in outcome.stderr
    assert desk.product.requests == []


def test_a_new_name_that_is_taken_is_said_to_be(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/agents/agent-1"] = AGENT
    desk.product.routes["PATCH", "/v1/agents/agent-1"] = AGENT | {"name": "bob"}
    desk.product.routes["GET", "/v1/agents/"] = [AGENT | {"id": "agent-9", "name": "bob"}]
    outcome = desk.type("agents", "update", "agent-1", "--name", "bob")
    assert (outcome.status, "agent-9" in outcome.stderr) == (0, True)


def test_a_field_of_the_request_is_named_as_the_option_is(desk: Desk) -> None:
    refusal = Refusal(422, "invalid_field", "body.model: needs the provider 'no'")
    desk.product.routes["POST", "/v1/agents/"] = refusal
    outcome = desk.type("agents", "create", "ada", "--model", "no/x")
    assert outcome.status == 2
    assert outcome.stderr == "kelpie: model: needs the provider 'no'\n"
