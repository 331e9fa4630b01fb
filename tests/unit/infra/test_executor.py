from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kelpie.core import limits
from kelpie.core.errors import DeniedError, SandboxError
from kelpie.effects.executor import Order
from kelpie.effects.model import (
    Approval,
    EffectRecord,
    FileDiff,
    Outcome,
    Preparation,
    Verdict,
    bound_digest,
)
from kelpie.infra.card import bound_diffs
from kelpie.infra.config import YamlLoader
from kelpie.infra.executor import PlanExecutor
from kelpie.infra.messages import TargetState
from kelpie.infra.plan import Plan
from kelpie.infra.service import diff_plan, load_workspace, plan_workspace
from kelpie.infra.wishes import make_grant_effect
from kelpie.sandbox.protocol import FileState
from tests.unit.infra.world import (
    LINK,
    PLAN_ACTOR,
    ROOT,
    FileMap,
    a_directory,
    a_file,
    applied,
    desire,
    directory_state,
    file_state,
    record,
)

ETC = a_directory("etc", "etc")
MOTD = a_file("motd", "etc/motd")
OLD = a_file("old", "old")


def look(target: FileMap) -> Plan:
    holding = TargetState(root=ROOT, applied=applied(OLD), revision=3)
    return asyncio.run(
        plan_workspace(desired=desire(ETC, MOTD), root=ROOT, target=target, holding=holding)
    )


def grant_record(args: dict[str, Any]) -> EffectRecord:
    return msgspec.structs.replace(record("grant", "proposed"), kind="plan.apply", args=args)


def prepare(target: FileMap, args: dict[str, Any]) -> Preparation | Outcome:
    opened: list[str] = []

    def open_target(root: str) -> FileMap:
        opened.append(root)
        return target

    executor = PlanExecutor(open_target=open_target)
    prepared = asyncio.run(executor.prepare(PLAN_ACTOR, grant_record(args)))
    assert opened in ([], [ROOT])
    return prepared


def test_planning_keeps_the_contents_and_reads_the_rest() -> None:
    target = FileMap(states={"old": file_state("x")})
    plan = look(target)
    assert [unit.action for unit in plan.units] == ["create", "delete", "create"]
    assert list(target.blobs.values()) == [b"hello\n"]
    assert plan.revision == 3
    diffs = asyncio.run(diff_plan(plan, target))
    assert [diff.path for diff in diffs] == ["etc", "old", "etc/motd"]


def test_a_workspace_is_loaded_from_a_file_or_from_a_text(tmp_path: Path) -> None:
    text = "version: 1\nunits: [{id: etc, type: linux.dir, path: etc}]\n"
    (tmp_path / "site.yaml").write_text(text)
    loader = YamlLoader()
    from_file = load_workspace(tmp_path / "site.yaml", loader=loader)
    assert from_file == load_workspace(text, name="site.yaml", loader=loader)
    assert from_file.units == (replace(ETC, line=2),)


def test_planning_what_is_already_so_keeps_no_content() -> None:
    target = FileMap(states={"other": file_state("hello\n")})
    plan = asyncio.run(
        plan_workspace(
            desired=desire(a_file("other", "other")),
            root=ROOT,
            target=target,
            holding=TargetState(),
        )
    )
    assert not plan.has_changes
    assert target.blobs == {}


def test_a_link_in_the_way_is_a_fact_and_nothing_below_it_is_read() -> None:
    class Guarded(FileMap):
        async def state(self, path: str) -> FileState:
            if path.startswith("etc/"):
                raise SandboxError("leads through a link")
            return LINK

    planning = plan_workspace(
        desired=desire(),
        root=ROOT,
        target=Guarded(),
        holding=TargetState(applied=applied(MOTD)),
    )
    assert asyncio.run(planning).forgets == ("etc/motd",)


def test_the_card_shows_every_unit_and_how_to_go_back() -> None:
    target = FileMap(states={"old": file_state("x")})
    prepared = prepare(target, make_grant_effect(look(target)).args)
    assert isinstance(prepared, Preparation)
    card = prepared.card
    assert card.title == f"Apply site.yaml to {ROOT}: 2 create, 1 delete"
    assert [diff.path for diff in card.files] == ["etc", "old", "etc/motd"]
    assert "1 of them remove what the workspace no longer names." in card.reasons
    assert ROOT in card.where
    assert "created" in card.undo
    assert "earlier version" in card.undo
    assert prepared.facts == {
        "paths": ["etc", "old", "etc/motd"],
        "changes": True,
        "create": 2,
        "update": 0,
        "delete": 1,
    }


def test_the_target_digest_follows_the_target() -> None:
    target = FileMap(states={"old": file_state("x")})
    args = make_grant_effect(look(target)).args
    first, again = prepare(target, args), prepare(target, args)
    target.states["old"] = file_state("x", 0o600)
    moved = prepare(target, args)
    assert isinstance(first, Preparation)
    assert isinstance(again, Preparation)
    assert isinstance(moved, Preparation)
    assert first.target == again.target != moved.target


def test_a_plan_whose_target_moved_is_not_worth_a_question() -> None:
    target = FileMap(states={"old": file_state("x")})
    args = make_grant_effect(look(target)).args
    target.states |= dict.fromkeys(("old", "etc/motd"), file_state("new"))
    target.states["etc"] = directory_state()
    outcome = prepare(target, args)
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.code, outcome.sent) == ("failed", "conflict", False)
    assert outcome.error == ("'etc', 'old', 'etc/motd' changed after the plan was made; plan again")


def grant_args(**changes: object) -> dict[str, Any]:
    return make_grant_effect(look(FileMap())).args | changes


def with_path(path: str) -> dict[str, Any]:
    args = grant_args()
    args["units"][0]["change"]["path"] = path
    return args


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ({}, "invalid_field"),
        (grant_args(extra=1), "invalid_field"),
        (grant_args(root="relative"), "invalid_field"),
        (grant_args(units=[]), "denied"),
        (with_path("../up"), "denied"),
    ],
)
def test_arguments_that_no_plan_makes_are_a_failure(args: dict[str, Any], code: str) -> None:
    outcome = prepare(FileMap(), args)
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.code) == ("failed", code)


def test_a_target_that_cannot_be_read_is_a_failure() -> None:
    class Broken(FileMap):
        async def state(self, path: str) -> FileState:
            raise SandboxError("the root is gone")

    outcome = prepare(Broken(), grant_args())
    assert isinstance(outcome, Outcome)
    assert (outcome.code, outcome.error) == ("sandbox_failed", "the root is gone")


def test_an_approval_is_never_carried_out() -> None:
    started = msgspec.structs.replace(
        grant_record(grant_args()),
        state="started",
        verdict=Verdict(color="green", reasons=(), policy="p", at_ms=1),
    )
    digest = bound_digest(started, "p")
    approval = Approval(digest=digest, by="policy", at_ms=1)
    started = msgspec.structs.replace(started, digest=digest, approval=approval)

    async def no_stream(kind: str, body: bytes) -> None:
        raise AssertionError(kind, body)

    order = Order(actor=PLAN_ACTOR, record=started, attempt=1, not_after_ms=2, stream=no_stream)
    executor = PlanExecutor(open_target=lambda root: FileMap())
    assert executor.promise({}) == "once"
    with pytest.raises(DeniedError, match="is an approval"):
        asyncio.run(executor.execute(order))
    assert asyncio.run(executor.reconcile(order)) is None


def test_a_card_hides_whole_lines_beyond_its_bound_and_counts_them() -> None:
    line = "+" + "é" * 511 + "\n"
    count = limits.PLAN_DIFF_BYTES_MAX // len(line.encode())
    diffs = bound_diffs(
        FileDiff(path=str(n), change="create", diff=line * (count - 1), lines_hidden=n)
        for n in range(3)
    )
    shown = [diff.diff.count("\n") for diff in diffs]
    assert shown == [count - 1, 1, 0]
    assert [diff.lines_hidden for diff in diffs] == [0, 1 + count - 2, 2 + count - 1]
    text = FileMap(diff_text=line * count)
    args = make_grant_effect(look(text)).args
    prepared = prepare(text, args)
    assert isinstance(prepared, Preparation)
    assert "hidden" in " ".join(prepared.card.reasons)
