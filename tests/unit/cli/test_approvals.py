"""Approvals and effects on the command line."""

from __future__ import annotations

from tests.unit.cli.answers import EFFECT, Question
from tests.unit.cli.product import Desk


def test_what_waits_is_listed(desk: Desk) -> None:
    Question(desk)
    outcome = desk.type("approvals", "list")
    assert outcome.stdout.splitlines()[0].split() == ["ID", "EXPIRES", "ACTOR", "WHAT"]
    assert "Rewrite notes.txt" in outcome.stdout
    assert desk.product.requests[0].query == {"state": "waiting", "limit": "50"}
    assert desk.type("approvals", "list", "--json").json() == [EFFECT]
    assert desk.product.drives == [False, False], "looking executes nothing"


def test_an_empty_list_says_so_on_stderr(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/approvals"] = {"effects": [], "next_after": None}
    outcome = desk.type("approvals", "list")
    assert (outcome.stdout, outcome.stderr) == ("", "Nothing is waiting.\n")
    assert desk.type("approvals", "list", "--json").json() == []


def test_showing_prints_the_whole_card(desk: Desk) -> None:
    Question(desk)
    text = desk.type("approvals", "show", "effect-1").stdout
    for part in ("Rewrite notes.txt", "sh -c 'echo hi'", "it writes a file", "+new", "sha256:aa"):
        assert part in text
    assert desk.type("approvals", "show", "effect-1", "--json").json() == EFFECT


def test_approving_is_bound_to_the_digest_and_works_once(desk: Desk) -> None:
    question = Question(desk)
    words = ("approvals", "approve", "effect-1", "--digest", "sha256:aa", "--reason", "fine")
    outcome = desk.type(*words)
    assert outcome.stderr == "effect-1 is done\n"
    assert question.answers == [{"digest": "sha256:aa", "reason": "fine"}]
    again = desk.type(*words, "--json")
    assert again.status == 5
    assert again.error()["next"] == "kelpie approvals list"


def test_denying_carries_the_reason(desk: Desk) -> None:
    question = Question(desk)
    outcome = desk.type("approvals", "deny", "effect-1", "--reason", "no", "--json")
    assert outcome.json()["state"] == "denied"
    assert question.answers == [{"reason": "no"}]


def test_an_unknown_approval_exits_4(desk: Desk) -> None:
    outcome = desk.type("approvals", "show", "../agents")
    assert desk.product.requests[0].path == "/v1/approvals/../agents"
    assert outcome.status == 4


def test_effects_are_listed_shown_and_resolved(desk: Desk) -> None:
    routes = desk.product.routes
    unknown = EFFECT | {"state": "unknown"}
    routes["GET", "/v1/effects"] = {"effects": [unknown], "next_after": None}
    routes["GET", "/v1/effects/effect-1"] = unknown
    routes["POST", "/v1/effects/effect-1/resolve"] = EFFECT | {"state": "done"}
    words = ("effects", "list", "--state", "unknown", "--actor", "agent/agent-1")
    assert "effect-1" in desk.type(*words).stdout
    query = {"state": "unknown", "actor": "agent/agent-1", "limit": "50", "order": "desc"}
    assert desk.product.requests[0].query == query
    assert desk.type(*words, "--json").json() == [unknown]
    later = unknown | {"effect_id": "effect-2"}
    routes["GET", "/v1/effects"] = {"effects": [later, unknown], "next_after": None}
    assert desk.type("effects", "list", "--json").json() == [unknown, later]
    assert desk.type("effects", "list", "--after", "effect-0", "--json").json() == [later, unknown]
    assert desk.product.requests[-1].query["order"] == "asc"
    assert "files.apply" in desk.type("effects", "show", "effect-1").stdout
    assert desk.type("effects", "show", "effect-1", "--json").json() == unknown
    assert desk.type("effects", "resolve", "effect-1", "--done").status == 64
    resolved = ("effects", "resolve", "effect-1", "--failed", "--reason", "looked")
    assert desk.type(*resolved).stderr == "effect-1 is done\n"
    assert desk.product.requests[-1].body == {"succeeded": False, "reason": "looked"}
    assert desk.type(*resolved, "--json").json()["state"] == "done"


def test_a_state_that_is_none_is_answered_with_those_there_are(desk: Desk) -> None:
    outcome = desk.type("approvals", "list", "--state", "foo")
    assert outcome.status == 64
    assert "'waiting'" in outcome.stderr
    assert desk.product.requests == []
