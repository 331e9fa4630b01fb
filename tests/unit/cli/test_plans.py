"""Plan and apply on the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from kelpie.cli.client import Api
from kelpie.cli.errors import CommandError
from kelpie.cli.plans import make_plan
from tests.unit.cli.answers import PLAN, Question, event, log
from tests.unit.cli.product import Desk, Events, Refusal

ACTOR = "plan/plan-1"


def _workspace(desk: Desk) -> str:
    (desk.directory / "site").mkdir(exist_ok=True)
    (desk.directory / "site.yaml").write_text("version: 1\nunits: []\n", encoding="utf-8")
    return "site.yaml"


def _plan(desk: Desk, status: str = "applied", **changes: Any) -> None:
    plan = PLAN | changes
    desk.product.routes["POST", "/v1/plans"] = plan
    desk.product.routes["POST", "/v1/plans/plan-1/apply"] = plan
    desk.product.routes["GET", "/v1/plans/plan-1"] = plan | {"status": status}


def _log(desk: Desk, *kinds: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "plan.waiting": {"effect_id": "effect-1"},
        "unit.started": {"action": "create", "path": "etc/motd"},
        "unit.finished": {"status": "done", "path": "etc/motd", "error": ""},
    }
    rows = [
        event(index, kind, ACTOR, **bodies.get(kind, {})) for index, kind in enumerate(kinds, 1)
    ]
    desk.product.routes["GET", "/v1/events"] = log(*rows)


WHOLE = ("plan.waiting", "plan.approved", "unit.started", "unit.finished", "plan.finished")


def test_a_plan_with_changes_exits_2_and_shows_each_diff(desk: Desk) -> None:
    _plan(desk)
    outcome = desk.type("plan", _workspace(desk), "--root", "site")
    assert outcome.status == 2
    assert outcome.stdout == ("+ linux.file etc/motd\n    +hello\nPlan plan-1: 1 to create.\n")
    expected = {
        "workspace": str(desk.directory / "site.yaml"),
        "root": str(desk.directory / "site"),
    }
    assert desk.product.requests[0].body == expected
    assert desk.product.drives == [False]
    assert desk.type("plan", "site.yaml", "--json").json() == PLAN


def test_an_empty_plan_exits_0(desk: Desk) -> None:
    _plan(desk, has_changes=False, units=[], counts={"none": 0})
    outcome = desk.type("plan", _workspace(desk))
    assert (outcome.status, outcome.stdout) == (0, "Plan plan-1: nothing to change.\n")


def test_bad_input_of_a_plan_exits_64_so_that_2_means_changes_only(desk: Desk) -> None:
    refusal = Refusal(422, "invalid_field", "site.yaml:3: mode: must be octal")
    desk.product.routes["POST", "/v1/plans"] = refusal
    outcome = desk.type("plan", _workspace(desk), "--json")
    assert outcome.status == 64
    assert outcome.error()["exit_status"] == 64
    (desk.directory / "kelpie.toml").write_text("nonsense = 1\n", encoding="utf-8")
    assert desk.type("plan", "site.yaml").status == 64
    assert desk.type("plan").status == 64


def test_yes_approves_with_the_digest_and_follows_to_the_end(desk: Desk) -> None:
    _plan(desk)
    _log(desk, *WHOLE)
    question = Question(desk)
    outcome = desk.type("apply", _workspace(desk), "--yes")
    assert outcome.status == 0, outcome.stderr
    assert question.answers == [{"digest": "sha256:aa", "reason": "kelpie apply --yes"}]
    assert desk.product.drives == [True]
    assert "  create etc/motd ...\n  done etc/motd\n" in outcome.stderr


def test_json_prints_the_finished_plan_alone(desk: Desk) -> None:
    _plan(desk)
    _log(desk, *WHOLE)
    Question(desk)
    outcome = desk.type("apply", _workspace(desk), "--yes", "--json")
    assert outcome.json()["status"] == "applied"


def test_no_wait_leaves_the_question_and_exits_3(desk: Desk) -> None:
    _plan(desk)
    _log(desk, *WHOLE)
    question = Question(desk)
    outcome = desk.type("apply", _workspace(desk), "--no-wait", "--json")
    assert outcome.status == 3
    assert outcome.json()["effect_id"] == "effect-1"
    assert "kelpie approvals approve effect-1" in outcome.stderr
    assert question.answers == []


def test_an_interrupted_apply_goes_on_without_asking_again(desk: Desk) -> None:
    _plan(desk, status="applying")
    _log(desk, *WHOLE)
    question = Question(desk)
    question.effect["state"] = "done"
    states = ["applying", "applied"]
    desk.product.routes["GET", "/v1/plans/plan-1"] = lambda _: PLAN | {"status": states.pop(0)}
    outcome = desk.type("apply", "--plan", "plan-1")
    assert outcome.status == 0
    assert question.answers == []
    posts = [request.path for request in desk.product.requests if request.method == "POST"]
    assert posts == [], "an apply that is under way is followed, not started again"


@pytest.mark.parametrize(("status", "exit_status"), [("failed", 7), ("denied", 7), ("applied", 0)])
def test_a_finished_plan_is_reported_as_it_ended(desk: Desk, status: str, exit_status: int) -> None:
    _plan(desk, status=status)
    outcome = desk.type("apply", "--plan", "plan-1")
    assert outcome.status == exit_status


def test_a_refused_plan_says_who_is_in_the_way(desk: Desk) -> None:
    _plan(desk, status="refused", note="plan-0 holds the target")
    _log(desk, "plan.refused")
    outcome = desk.type("apply", _workspace(desk))
    assert outcome.status == 5
    assert "plan-0 holds the target" in outcome.stderr


def test_a_server_that_stops_meanwhile_says_how_to_go_on(desk: Desk) -> None:
    _plan(desk)
    desk.product.routes["GET", "/v1/events"] = Refusal(503, "draining", "shutting down")
    outcome = desk.type("apply", _workspace(desk))
    assert outcome.status == 75


def test_apply_wants_either_a_file_or_a_plan(desk: Desk) -> None:
    assert desk.type("apply").status == 64
    assert desk.type("apply", "x.yaml", "--plan", "plan-1").status == 64


async def _ask_elsewhere(file: Path) -> dict[str, Any]:
    """Make a plan through a server on another machine; return what it was asked."""
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json=PLAN)

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://far") as client:
        api = Api(client, where="far", is_local=False)
        assert await make_plan(api, file, Path("/srv/site")) == PLAN
    return asked[0]


def test_a_server_elsewhere_gets_the_text_and_not_a_path_of_this_machine(desk: Desk) -> None:
    file = desk.directory / _workspace(desk)
    asked = asyncio.run(_ask_elsewhere(file))
    assert asked == {"yaml": "version: 1\nunits: []\n", "root": "/srv/site"}
    file.write_bytes(b"\xff")
    with pytest.raises(CommandError, match="is not UTF-8 text"):
        asyncio.run(_ask_elsewhere(file))


def test_a_log_that_ends_early_says_how_to_go_on(desk: Desk) -> None:
    _plan(desk)
    desk.product.routes["GET", "/v1/events"] = Events([])
    outcome = desk.type("apply", _workspace(desk))
    assert outcome.status == 69
    assert "next: kelpie apply --plan plan-1" in outcome.stderr


def test_a_stream_that_breaks_with_an_error_reports_that_error(desk: Desk) -> None:
    _plan(desk)
    error = {"error": {"code": "store_corrupt", "message": "page 3", "fields": {}}}
    desk.product.routes["GET", "/v1/events"] = Events([error], name="error")
    outcome = desk.type("apply", _workspace(desk), "--json")
    assert (outcome.status, outcome.error()["code"]) == (74, "store_corrupt")


def test_a_file_that_is_not_there_is_named_before_anything_is_asked(desk: Desk) -> None:
    outcome = desk.type("plan", "nofile.yaml")
    assert outcome.status == 64
    assert outcome.stderr == f"kelpie: {desk.directory}/nofile.yaml: there is no such file\n"
    outcome = desk.type("apply", ".")
    assert outcome.status == 2
    assert "is a directory; name the YAML file in it" in outcome.stderr
    assert desk.product.requests == []


def test_a_root_that_is_no_directory_is_named_by_its_option(desk: Desk) -> None:
    outcome = desk.type("plan", _workspace(desk), "--root", "nowhere")
    assert outcome.status == 64
    assert outcome.stderr.startswith("kelpie: --root: ")
    assert desk.product.requests == []
