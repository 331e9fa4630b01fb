"""A model that answers garbage: bounded repair, a typed end, a usable conversation."""

from __future__ import annotations

import msgspec
import pytest

from kelpie.core import limits
from kelpie.llm.model import ToolCall
from tests.unit.agents.driver import Driver, answer, check_pairs, tool_call

GARBAGE = {"text": 7}
LONG = "x" * (limits.ANSWER_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (GARBAGE, "could not be read"),
        ({}, "could not be read"),
        (msgspec.to_builtins(answer("  ")), "empty"),
        (msgspec.to_builtins(answer(LONG)), "bytes"),
        (
            msgspec.to_builtins(answer("", *[tool_call("read_file", path="x")] * 33)),
            "at most 32",
        ),
    ],
)
def test_garbage_is_handed_back_and_a_good_answer_then_counts(
    result: dict[str, object], problem: str
) -> None:
    agent = Driver()
    agent.start()
    agent.settle(agent.refs()[0], result=result)
    (ref,) = agent.refs("model.generate")
    assert problem in agent.open[ref].args["notice"]
    assert [m.role for m in agent.transcript] == ["user"]
    agent.say(answer("better"))
    assert (agent.last().stop_reason, agent.last().repairs) == ("end_turn", 1)


def test_garbage_without_end_fails_the_run_and_the_next_one_works() -> None:
    agent = Driver()
    agent.start()
    for _ in range(limits.REPAIRS_PER_RUN_MAX + 1):
        agent.settle(agent.refs()[0], result=GARBAGE)
    last = agent.last()
    assert (last.status, last.stop_reason) == ("failed", "invalid_llm_response")
    assert "could not be read" in last.error
    assert agent.open == {}
    assert agent.kinds().count("step.started") == agent.kinds().count("step.finished") == 4
    agent.start("run-2")
    agent.say(answer("fine"))
    assert agent.last().stop_reason == "end_turn"


def test_a_stream_the_provider_mangled_is_repaired_too() -> None:
    agent = Driver()
    agent.start()
    agent.settle(agent.refs()[0], "failed", result={"reason": "malformed"}, error="cut stream")
    assert "cut stream" in agent.open[agent.refs()[0]].args["notice"]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (ToolCall(id="1", name="fly", arguments="{}"), "there is no tool 'fly'"),
        (ToolCall(id="1", name="read_file", arguments='{"path": '), "not valid JSON"),
        (ToolCall(id="1", name="read_file", arguments="[]"), "must be one JSON object"),
        (ToolCall(id="1", name="read_file", arguments=""), '"path" is a required property'),
        (ToolCall(id="1", name="read_file", arguments='{"path": 1}'), "path: 1 is not of type"),
        (ToolCall(id="1", name="read_file", arguments='{"path": "\\ud800"}'), "not valid JSON"),
        (ToolCall(id="1", name="read_file", arguments="[" * 100_000), "not valid JSON"),
    ],
)
def test_a_call_that_cannot_be_made_returns_its_problem_to_the_model(
    call: ToolCall, problem: str
) -> None:
    agent = Driver()
    agent.start()
    agent.say(answer("", call, tool_call("core_memory_append", "2", label="human", content="x")))
    bad, good = agent.returns
    assert problem in bad.content
    assert (bad.status, good.status) == ("error", "success")
    assert agent.state.run is not None
    assert agent.state.run.repairs == 1
    agent.say(answer("sorry"))
    assert agent.last().stop_reason == "end_turn"


def test_bad_calls_without_end_fail_the_run_and_good_ones_beside_the_last_are_not_begun() -> None:
    agent = Driver()
    agent.start()
    bad = ToolCall(id="1", name="fly", arguments="{}")
    for _ in range(limits.REPAIRS_PER_RUN_MAX):
        agent.say(answer("", bad))
    agent.say(answer("", bad, tool_call("write_file", "2", path="a", content="x")))
    last = agent.last()
    assert (last.status, last.stop_reason) == ("failed", "invalid_tool_call")
    assert "there is no tool 'fly'" in last.error
    assert agent.open == {}
    assert "it was not begun" in agent.returns[-1].content
    check_pairs(agent.transcript)
    agent.start("run-2")
    agent.say(answer("fine"))
    assert agent.last().stop_reason == "end_turn"


def test_a_tool_that_the_agent_does_not_have_does_not_exist_for_it() -> None:
    agent = Driver(msgspec.structs.replace(Driver().state.config, tools=()))
    agent.start()
    agent.say(answer("", tool_call("run_command", argv=["rm"])))
    assert "there is no tool 'run_command'; your tools are: none" in agent.returns[0].content


def test_silence_after_a_tool_return_ends_the_turn_without_a_message() -> None:
    agent = Driver()
    agent.start()
    agent.say(answer("", tool_call("core_memory_append", label="human", content="x")))
    agent.say(answer(""))
    assert agent.last().stop_reason == "end_turn"
    assert agent.transcript[-1].role == "tool"
