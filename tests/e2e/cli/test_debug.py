"""A production run lived through again, and forked, beside a server and without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.e2e.support.node import Node
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.requirement("DEBUG-REPLAY"), pytest.mark.timeout(300)]

REPLAY = ("debug", "replay")
SAYS_NO, BAD_INPUT, WAITING, MISSING, USAGE = 1, 2, 3, 4, 64


class Recorded(NamedTuple):
    """A node, a run that wrote a file, and one whose agent was changed while it waited."""

    node: Node
    written: str
    changed: str


@pytest.fixture(scope="module", params=["beside a server", "alone"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    """Runs that a server carried out, beside it or after its end."""
    directory: Path = tmp_path_factory.mktemp("node")
    node = Node(directory)
    node.script(*conversation())
    server = node.serve()
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    agent = node.ok("agents", "create", "ada", "--workspace", "workspace")["id"]
    node.ok("messages", "send", "ada", "hello")
    written = begin_write(node)
    approve(node, written)
    changed = begin_write(node)
    node.ok("agents", "update", agent, "--model", "openai/other")
    approve(node, changed)
    if request.param == "alone":
        assert server.process.end() == 0
    yield Recorded(node, written, changed)
    node.close()


def begin_write(node: Node) -> str:
    assert node.cli("messages", "send", "ada", "write it", "--json").status == WAITING
    started = [event["body"] for event in events(node) if event["kind"] == "run.started"]
    return str(started[-1]["run_id"])


def approve(node: Node, run_id: str) -> None:
    (waiting,) = node.ok("approvals", "list")
    node.ok("approvals", "approve", waiting["effect_id"])
    eventually(lambda: run_id in finished(node), within_s=60, what="the run to end")


def events(node: Node) -> list[dict[str, Any]]:
    done = node.cli("events", "tail", "--json")
    return [json.loads(line) for line in done.out.splitlines()]


def finished(node: Node) -> list[str]:
    found = [event["body"]["run"] for event in events(node) if event["kind"] == "run.finished"]
    return [run["run_id"] for run in found]


def step_of(story: dict[str, Any], because: str) -> int:
    """The number of the first step that happened because of this."""
    return next(int(step["number"]) for step in story["steps"] if because in step["because"])


def said(story: dict[str, Any]) -> list[str]:
    bodies = [each["body"] for step in story["steps"] for each in step["events"]]
    return [f"{body['role']}: {body['content']}" for body in bodies if "role" in body]


@pytest.mark.covers("kelpie debug replay")
def test_a_run_is_lived_through_again_as_it_is_recorded(recorded: Recorded) -> None:
    node, written, _ = recorded
    story = node.ok(*REPLAY, written)
    assert (story["is_same"], story["run_id"]) == (True, written)
    assert story["verdict"].startswith("the same as recorded, to its end")
    assert said(story) == [
        "user: write it",
        "assistant: ",
        f"tool: Wrote '{FILE}'.",
        "assistant: That is done.",
    ]
    ends = [event["body"] for event in events(node) if event["kind"] == "run.finished"]
    assert story["steps"][-1]["events"][-1]["body"] in ends
    told = node.cli(*REPLAY, written)
    assert told.status == 0
    assert "because: files.apply ends: done" in told.out


@pytest.mark.covers("kelpie debug replay")
def test_another_answer_makes_another_end_and_touches_nothing(recorded: Recorded) -> None:
    node, written, _ = recorded
    (node.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    before = len(events(node))
    at = step_of(node.ok(*REPLAY, written), "model.generate ends")
    answer = node.directory / "answer.json"
    arguments = json.dumps({"path": "new.txt", "content": AFTER})
    call = {"id": "call-a", "name": "write_file", "arguments": arguments}
    answer.write_text(json.dumps({"text": "", "tool_calls": [call], "finish": "tool_calls"}))
    words = (*REPLAY, written, "--fork", str(at), "--model-answer", "answer.json")
    waits = node.ok(*words)
    assert "a person is asked" in waits["verdict"]
    forked = node.ok(*words, "--approve", "--model-says", "Thank you.")
    assert forked["verdict"] == "forked: the run ended: completed, end_turn"
    assert said(forked)[-2:] == ["tool: Wrote 'new.txt'.", "assistant: Thank you."]
    assert any("-assistant: That is done." in line for line in forked["difference"])
    sources = {step["source"] for step in forked["steps"][at - 1 :]}
    assert sources >= {"given", "given: --approve", "the gate"}
    assert (node.workspace / FILE).read_text() == BEFORE
    assert not (node.workspace / "new.txt").exists()
    assert len(events(node)) == before


@pytest.mark.covers("kelpie debug replay")
@pytest.mark.parametrize(
    ("because", "words", "source"),
    [
        ("says yes", ("--deny",), "given: --deny"),
        (
            "says yes",
            ("--fault", "concurrency.approval_late"),
            "fault concurrency.approval_late",
        ),
        (
            "files.apply ends",
            ("--fault", "crash.at_any_step"),
            "fault crash.at_any_step",
        ),
        (
            "model.generate ends",
            ("--fault", "model.unknown_tool"),
            "fault model.unknown_tool",
        ),
        (
            "model.generate ends",
            ("--fault", "model.garbage"),
            "fault model.garbage",
        ),
        ("files.apply ends", ("--tool-result", "full.json"), "given"),
    ],
)
def test_a_fault_or_a_no_is_answered_by_the_shipped_gate(
    recorded: Recorded, because: str, words: tuple[str, ...], source: str
) -> None:
    node, written, _ = recorded
    full = {"status": "failed", "error": "no space is left", "code": "disk_full"}
    (node.directory / "full.json").write_text(json.dumps(full), encoding="utf-8")
    at = step_of(node.ok(*REPLAY, written), because)
    forked = node.ok(*REPLAY, written, "--fork", str(at), *words)
    assert forked["steps"][at - 1]["source"] == source
    assert forked["verdict"] == "forked: the run ended: completed, end_turn"
    assert said(forked)[-1] == "assistant: That is done."
    assert forked["difference"]


@pytest.mark.covers("kelpie debug replay")
def test_a_person_steps_over_a_run(recorded: Recorded) -> None:
    node, written, _ = recorded
    done = node.cli(
        *REPLAY, written, "--step", text="n\nn 3\np\ndiff\neffects\nversus\nbreak\nquit\n"
    )
    assert done.status == 0, done.err
    assert "because: files.apply is prepared" in done.out
    assert "approval" in done.out
    assert "nothing is different from the record" in done.out


@pytest.mark.covers("kelpie debug replay")
def test_a_run_that_somebody_changed_on_its_way_is_not_pretended(recorded: Recorded) -> None:
    node, _, changed = recorded
    done = node.cli(*REPLAY, changed)
    assert done.status == SAYS_NO
    assert "diverged at step" in done.out
    assert "somebody may have changed the agent during the run" in done.out


@pytest.mark.covers("kelpie debug replay")
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("--fork", "1", "--deny"), BAD_INPUT, "no place for --deny"),
        (("--fork", "99"), MISSING, "step '99' does not exist"),
        (("--fork", "1", "--fault", "nosuch"), BAD_INPUT, "no fault of the catalogue"),
        (("--fork", "1", "--fault", "storage.disk_full"), BAD_INPUT, "none that a fork has"),
        (("--fork", "1", "--tool-result", "nowhere.json"), BAD_INPUT, "No such file"),
        (("--deny",), USAGE, "--fork STEP"),
    ],
)
def test_what_cannot_be_forked_is_refused(
    recorded: Recorded, words: tuple[str, ...], status: int, text: str
) -> None:
    node, written, _ = recorded
    done = node.cli(*REPLAY, written, *words)
    assert done.status == status, done.err
    assert text in done.err
    assert node.cli(*REPLAY, "run-nobody").status == MISSING
