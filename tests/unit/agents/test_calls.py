"""The tool calls of a step."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kelpie.agents.machine import AgentMachine
from kelpie.core import limits
from kelpie.llm.model import ToolCall
from kelpie.tools.registry import ToolRegistry
from tests.unit.agents.driver import Driver, answer, check_pairs, settled, tool_call

RAN = {"exit_status": 0, "stdout": "ok\n", "stderr": "", "output_cut": False, "stopped_by": ""}
CHANGES = [{"path": "a.txt", "kind": "file", "before": "", "after": "sha256:1", "mode": 0o644}]


def begin(*calls: ToolCall) -> Driver:
    """Return an agent whose run has just been answered with these calls."""
    agent = Driver()
    agent.start()
    agent.say(answer("let me see", *calls))
    return agent


def test_a_read_runs_and_its_text_returns_before_the_next_model_call() -> None:
    agent = begin(tool_call("read_file", path="notes.txt"))
    (ref,) = agent.refs()
    effect = agent.open[ref]
    assert effect.kind == "files.read"
    assert effect.args == {"root": "/srv/work", "path": "notes.txt", "mode": "read"}
    assert (effect.tool, effect.definition != "") == ("read_file", True)
    agent.settle(ref, result={"text": "remember the milk", "cut": False})
    assert [(m.content, m.status, m.name) for m in agent.returns] == [
        ("remember the milk", "success", "read_file")
    ]
    (ref,) = agent.refs()
    assert agent.open[ref].args["sequences"] == [1, 2, 3]
    agent.say(answer("buy milk"))
    assert agent.last().stop_reason == "end_turn"
    assert (agent.last().steps, agent.last().tool_returns) == (2, 1)


def test_parallel_calls_return_in_their_order_however_they_settle() -> None:
    agent = begin(
        tool_call("read_file", "one", path="1"),
        tool_call("core_memory_append", "two", label="human", content="x"),
        tool_call("read_file", "three", path="3"),
    )
    first, third = agent.refs("files.read")
    agent.settle(third, result={"text": "third", "cut": False})
    assert agent.returns == []
    agent.settle(first, result={"text": "first", "cut": True})
    assert [m.tool_call_id for m in agent.returns] == ["one", "two", "three"]
    assert agent.returns[0].content == "first\n[cut: there is more than is shown]"
    check_pairs(agent.transcript)


def test_calls_with_a_missing_or_repeated_id_get_one_of_their_own() -> None:
    agent = begin(
        tool_call("read_file", "", path="1"),
        tool_call("read_file", "same", path="2"),
        tool_call("read_file", "same", path="3"),
    )
    ids = [call.id for call in agent.transcript[-1].tool_calls]
    assert len(set(ids)) == 3
    assert ids[1] == "same"
    assert all(ids)


def test_a_run_waits_only_while_all_its_open_calls_wait() -> None:
    agent = begin(
        tool_call("write_file", "one", path="a", content="x"),
        tool_call("read_file", "two", path="b"),
    )
    (write,) = agent.refs("files.apply")
    (read,) = agent.refs("files.read")
    agent.wait(write)
    agent.wait(write)
    assert agent.status == "running"
    agent.settle(read, result={"text": "", "cut": False})
    assert agent.status == "waiting"
    waiting = [event.body for event in agent.events if event.kind == "run.waiting"]
    assert [(w["effect_id"], w["call"].id) for w in waiting] == [(f"effect:{write}", "one")]
    agent.approve(write)
    agent.approve(write)
    assert agent.status == "running"
    assert agent.kinds().count("run.resumed") == 1
    agent.settle(write, result={"applied": ["a"], "before": {}})
    assert [m.content for m in agent.returns] == ["Wrote 'a'.", ""]


@pytest.mark.requirement("AGENT-CALLS-ANSWERED")
@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ("denied", "too risky", "Denied: writing 'a' was refused and nothing was done: too risky"),
        ("expired", "", "Expired: nobody answered in time"),
        ("voided", "", "Voided: the target of writing 'a' changed"),
        ("unknown", "", "it is not known whether writing 'a' took effect"),
        ("cancelled", "", "Cancelled"),
        ("failed", "disk full", "Failed: writing 'a' failed: disk full"),
    ],
)
def test_an_effect_that_did_not_succeed_is_told_plainly(state: Any, error: str, words: str) -> None:
    agent = begin(tool_call("write_file", path="a", content="x"))
    agent.settle(agent.refs("files.apply")[0], state, error=error)
    (told,) = agent.returns
    assert words in told.content
    assert told.status == "error"
    agent.say(answer("I see"))
    assert agent.last().stop_reason == "end_turn"


def test_a_command_without_changes_returns_its_output() -> None:
    agent = begin(tool_call("run_command", argv=["make", "test"], timeout_s=5, idempotent=True))
    (ref,) = agent.refs("command.run")
    assert agent.open[ref].args == {
        "root": "/srv/work",
        "argv": ["make", "test"],
        "timeout_ms": 5_000,
        "idempotent": True,
        "directory": ".",
    }
    agent.settle(ref, result={**RAN, "changes": []})
    assert agent.returns[0].content == "exit status 0\nstdout:\nok\n"
    assert agent.returns[0].status == "success"


def test_what_a_command_changed_lands_through_a_second_effect() -> None:
    agent = begin(tool_call("run_command", argv=["touch", "a.txt"]))
    (ref,) = agent.refs("command.run")
    agent.settle(ref, result={**RAN, "changes": CHANGES})
    assert agent.returns == []
    (landing,) = agent.refs("files.apply")
    assert landing != ref
    assert agent.open[landing].args == {
        "root": "/srv/work",
        "changes": CHANGES,
        "from_command": ["touch", "a.txt"],
    }
    agent.wait(landing)
    agent.approve(landing)
    agent.settle(landing, result={"applied": ["a.txt"], "before": {}})
    assert "Its changes landed in the workspace: a.txt" in agent.returns[0].content
    assert "exit status 0" in agent.returns[0].content


@pytest.mark.parametrize(
    ("state", "fate"), [("denied", "were discarded"), ("unknown", "may or may not have landed")]
)
def test_a_landing_that_did_not_succeed_is_told_plainly(state: Any, fate: str) -> None:
    agent = begin(tool_call("run_command", argv=["touch", "a.txt"]))
    agent.settle(agent.refs("command.run")[0], result={**RAN, "changes": CHANGES * 30})
    agent.settle(agent.refs("files.apply")[0], state, error="no")
    (told,) = agent.returns
    assert f"its changes {fate}" in told.content
    assert "and 10 more" in told.content
    assert told.status == "error"


def test_changes_of_a_command_that_was_stopped_are_discarded() -> None:
    agent = begin(tool_call("run_command", argv=["make"]))
    result = {**RAN, "exit_status": -9, "stopped_by": "timeout", "changes": CHANGES}
    agent.settle(agent.refs("command.run")[0], result={**result, "output_cut": True})
    (told,) = agent.returns
    assert "are discarded: it was stopped" in told.content
    assert "stopped by its bound: timeout" in told.content
    assert "output was longer" in told.content


def test_what_a_command_left_that_no_change_can_carry_is_named() -> None:
    agent = begin(tool_call("run_command", argv=["make"]))
    result = {**RAN, "changes": [], "left_out": ["pipe", "\\xff"], "left_out_count": 5}
    agent.settle(agent.refs("command.run")[0], result=result)
    assert "can carry them: pipe, \\xff and 3 more" in agent.returns[0].content


def test_the_landing_is_told_what_it_leaves_out() -> None:
    agent = begin(tool_call("run_command", argv=["make"]))
    result = {**RAN, "changes": CHANGES, "left_out": ["pipe"], "left_out_count": 1}
    agent.settle(agent.refs("command.run")[0], result=result)
    (landing,) = agent.refs("files.apply")
    assert agent.open[landing].args["left_out"] == ["pipe"]
    assert agent.open[landing].args["left_out_count"] == 1


def test_a_failed_command_still_shows_what_it_printed() -> None:
    agent = begin(tool_call("run_command", argv=["make"]))
    result = {**RAN, "changes": []}
    agent.settle(agent.refs("command.run")[0], "failed", result=result, error="too many changes")
    assert "too many changes" in agent.returns[0].content
    assert "stdout:\nok" in agent.returns[0].content


def test_an_unknown_command_outcome_returns_once_and_its_resolution_is_only_noted() -> None:
    agent = begin(tool_call("run_command", argv=["make"]))
    (ref,) = agent.refs("command.run")
    effect = agent.open[ref]
    agent.settle(ref, "unknown")
    assert "Do not assume" in agent.returns[0].content
    before = agent.state
    agent.feed(settled(effect, "done", result={**RAN, "changes": CHANGES}))
    assert agent.state == before
    assert agent.events[-1].kind == "effect.late"
    assert len(agent.returns) == 1


@pytest.mark.requirement("AGENT-CALLS-ANSWERED")
def test_cancelling_answers_every_call_and_gives_up_what_is_open() -> None:
    agent = begin(tool_call("read_file", "one", path="1"), tool_call("read_file", "two", path="2"))
    first, second = agent.refs("files.read")
    agent.settle(second, result={"text": "second", "cut": False})
    agent.cancel()
    assert agent.cancelled == [first]
    fate = "before this call returned; what it asked for may have happened"
    assert [(m.content, m.status) for m in agent.returns] == [
        (f"Error: the run was cancelled {fate}.", "error"),
        ("second", "success"),
    ]
    check_pairs(agent.transcript)
    agent.start("run-2")
    agent.say(answer("hello again"))
    assert agent.last().stop_reason == "end_turn"


def test_memory_edits_that_cannot_be_made_are_told_and_the_run_goes_on() -> None:
    agent = begin(
        tool_call("core_memory_replace", "1", label="human", old_content="Bob", new_content=""),
        tool_call("core_memory_append", "2", label="nobody", content="x"),
        tool_call("core_memory_append", "3", label="human", content="x" * 20_000),
        tool_call("core_memory_replace", "4", label="human", old_content="Ada", new_content="Eve"),
    )
    words = ["does not contain", "block 'nobody' does not exist", "the limit is 16,384", "updated"]
    for message, expected in zip(agent.returns, words, strict=True):
        assert expected in message.content
    assert agent.state.blocks[0].value == "Name: Eve"
    assert agent.state.run is not None
    assert agent.state.run.repairs == 0


def test_file_tools_without_a_workspace_say_so() -> None:
    agent = Driver(msgspec.structs.replace(Driver().state.config, workspace=""))
    agent.start()
    agent.say(answer("", tool_call("list_files")))
    assert "no workspace" in agent.returns[0].content
    assert agent.returns[0].status == "error"


def test_a_long_return_is_cut_and_says_so() -> None:
    agent = begin(tool_call("read_file", path="big"))
    agent.settle(agent.refs("files.read")[0], result={"text": "é" * 100_000, "cut": False})
    content = agent.returns[0].content
    assert isinstance(content, str)
    assert len(content.encode()) <= limits.TOOL_RETURN_BYTES_MAX
    assert content.endswith("of 200,000 bytes are shown]")


def test_a_call_begun_by_a_program_that_knew_another_tool_returns_an_error() -> None:
    agent = begin(tool_call("read_file", path="1"))
    (ref,) = agent.refs("files.read")
    agent.machine = AgentMachine(ToolRegistry([]))
    agent.settle(ref, result={"text": "", "cut": False})
    assert "tool 'read_file' does not exist" in agent.returns[0].content
    (ref,) = agent.refs("model.generate")
    assert agent.open[ref].args["tools"] == []
