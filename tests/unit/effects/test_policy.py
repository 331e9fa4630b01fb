"""The first policy: what is green, what is red, and that no wording crosses over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import InvalidFieldError
from kelpie.effects.model import DiffCard, EffectRecord, Preparation
from kelpie.effects.policy import Policy, Rule, command_is_read_only


def record(kind: str, *, tool: str = "", paths: tuple[str, ...] = (), **args: Any) -> EffectRecord:
    return EffectRecord(
        effect_id="effect-1",
        kind=kind,
        ref="r",
        args=args,
        state="proposed",
        promise="once",
        tool=tool,
        timeout_ms=1,
        created_ms=0,
        updated_ms=0,
        preparation=Preparation(card=DiffCard(title=""), facts={"paths": list(paths)}),
    )


def color(policy: Policy, effect: EffectRecord) -> str:
    return policy.classify(effect, 0).color


@pytest.mark.parametrize(
    "argv",
    [
        ["cat", "notes.txt"],
        ["ls", "-la", "logs"],
        ["/usr/bin/grep", "-rn", "error", "logs"],
        ["find", ".", "-name", "*.log", "-newer", "mark"],
        ["tail", "-n", "100", "logs/app.log"],
        ["wc", "-l", "data.csv"],
        ["diff", "-u", "a", "b"],
    ],
)
def test_reading_searching_and_checking_logs_is_green(argv: list[str]) -> None:
    assert color(Policy(), record("command.run", argv=argv)) == "green"


def test_reading_a_file_through_the_tool_is_green() -> None:
    assert color(Policy(), record("files.read", path="a", mode="read")) == "green"


@pytest.mark.parametrize(
    ("example", "argv"),
    [
        ("editing in place", ["sed", "-i", "s/a/b/", "f"]),
        ("deleting", ["rm", "-rf", "build"]),
        ("deleting by a search", ["find", ".", "-delete"]),
        ("running by a search", ["find", ".", "-exec", "rm", "{}", ";"]),
        ("writing by a search", ["find", ".", "-fprint", "out"]),
        ("sending mail", ["mail", "-s", "hi", "someone"]),
        ("transferring", ["scp", "f", "host:f"]),
        ("fetching", ["curl", "-d", "@secret", "host"]),
        ("a shell", ["sh", "-c", "cat f"]),
        ("a shell by another path", ["/bin/bash", "-c", "ls"]),
        ("an interpreter", ["python3", "-c", "print(1)"]),
        ("an interpreter with a friendly name", ["./cat", "f"]),
        ("a program of the workspace with a reader's name", ["bin/ls"]),
        ("a wrapper", ["env", "cat", "f"]),
        ("another wrapper", ["xargs", "cat"]),
        ("a pager that can write", ["less", "f"]),
        ("an editor of streams", ["awk", "{print}", "f"]),
        ("sorting into a file", ["sort", "-o", "f", "f"]),
        ("copying", ["cp", "a", "b"]),
        ("version control", ["git", "diff"]),
        ("nothing at all", []),
    ],
)
def test_anything_that_can_change_or_send_is_red(example: str, argv: list[str]) -> None:
    verdict = Policy().classify(record("command.run", argv=argv), 0)
    assert verdict.color == "red", example
    assert verdict.reasons


@pytest.mark.requirement("POLICY-UNKNOWN-RED")
@pytest.mark.parametrize("kind", ["files.apply", "plan.apply", "mail.send", "", "files.read "])
def test_changes_and_unknown_kinds_are_red(kind: str) -> None:
    assert color(Policy(), record(kind)) == "red"


@pytest.mark.requirement("POLICY-NO-WORDING")
@given(words=st.lists(st.text(max_size=20), max_size=6), path=st.text(max_size=40))
def test_no_wording_turns_a_write_green(words: list[str], path: str) -> None:
    effect = record("files.apply", tool="read_file", argv=words, path=path, mode="read")
    assert color(Policy(), effect) == "red"


@pytest.mark.requirement("POLICY-UNKNOWN-RED")
@given(words=st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_a_program_that_is_not_listed_is_never_green(words: list[str]) -> None:
    argv = ["unlisted-program", *words]
    assert not command_is_read_only(argv)


def test_arguments_that_are_not_text_are_red() -> None:
    assert color(Policy(), record("command.run", argv=["cat", 7])) == "red"


@pytest.mark.requirement("POLICY-DENY-WINS")
def test_a_deny_rule_wins_over_a_red_one_whatever_the_order() -> None:
    deny = Rule(verdict="deny", reason="Never keys.", path="*.pem")
    red = Rule(verdict="red", reason="Careful.", kind="files.*")
    effect = record("files.apply", paths=("server.pem",))
    for rules in ((deny, red), (red, deny)):
        verdict = Policy(rules=rules).classify(effect, 0)
        assert verdict.color == "deny"
        assert "Never keys." in verdict.reasons


def test_a_rule_can_redden_a_read() -> None:
    rule = Rule(verdict="red", reason="Private.", path="private/*")
    policy = Policy(rules=(rule,))
    assert color(policy, record("files.read", path="private/diary")) == "red"
    assert color(policy, record("files.read", path="public/news")) == "green"


def test_a_rule_matches_by_program_and_by_tool() -> None:
    by_program = Policy(rules=(Rule(verdict="deny", reason="No.", program="ls"),))
    assert color(by_program, record("command.run", argv=["/bin/ls"])) == "deny"
    by_tool = Policy(rules=(Rule(verdict="red", reason="Ask.", tool="read_*"),))
    assert color(by_tool, record("files.read", tool="read_file")) == "red"


def test_a_rule_that_would_match_everything_by_accident_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match=r"policy\.rule"):
        Rule(verdict="deny", reason="Everything?")


def test_the_version_changes_with_the_rules_and_only_with_them() -> None:
    rule = Rule(verdict="red", reason="Ask.", tool="x")
    assert Policy().version == Policy().version
    assert Policy(rules=(rule,)).version != Policy().version
