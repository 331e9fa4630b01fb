"""The plan's part of the story: the same gate and the same journal, without any model.

The moment of the kill is a race against the apply, so that it is proved from the journal on disk,
while no server runs; a race that is lost is run again with a fresh root.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections import Counter
from typing import Any, Final, NamedTuple

import httpx
import yaml

from demo.cards import show_card
from demo.claims import ClaimError, Narrator
from demo.scene import PlanScene, read_tree, write_tree
from demo.stage import Stage

TRIES_MAX: Final = 3
KILL_AFTER: Final = 0.2
"""Which part of the units has finished when the server is killed."""
CHANGES_STATUS: Final = 2
EXCERPT_LINES: Final = 18
_PLAN_ID: Final = re.compile(r"\bplan-[0-9a-f-]{36}")
_COLOR: Final = re.compile(r"\x1b\[\d*m")


class Cut(NamedTuple):
    """What the journal held when the server was dead: unit ids."""

    started: frozenset[str]
    finished: frozenset[str]


class PlanStory:
    """A plan over one root, interrupted in its middle."""

    def __init__(self, stage: Stage, scene: PlanScene, narrator: Narrator) -> None:
        self._stage = stage
        self._scene = scene
        self._tell = narrator
        self._file = stage.root / "workspace.yaml"
        self._root = stage.root / "site"
        self._plan: dict[str, Any] = {}
        self._effect: dict[str, Any] = {}

    def run(self) -> None:
        """Tell it.

        Raises:
            ClaimError: Something was not as claimed.
        """
        document = {"version": 1, "units": self._scene.units()}
        self._file.write_text(yaml.safe_dump(document, sort_keys=False))
        for trial in range(1, TRIES_MAX + 1):
            self._root = self._stage.root / f"site-{trial}"
            self._make_plan()
            apply = self._ask()
            cut = self._kill_in_the_middle()
            if len(cut.finished) < self._changes_count:
                break
            self._tell.say("The apply was faster than the kill; once more, with a fresh root.")
            self._finish_lost_race(apply)
        else:
            seen_text = f"{TRIES_MAX} applies that ended before the kill"
            raise ClaimError("the kill hits the middle of the apply", "one that does", seen_text)
        self._prove_cut(cut, apply)
        self._resume(cut)
        self._plan_again()

    @property
    def _changes_count(self) -> int:
        return sum(unit["action"] != "none" for unit in self._plan["units"])

    @property
    def _actor(self) -> str:
        return f"plan/{self._plan['plan_id']}"

    # --- chapters -------------------------------------------------------------------------------

    def _make_plan(self) -> None:
        self._tell.chapter("A plan goes the same way: first what it would do")
        write_tree(self._root, self._scene.existing)
        before = read_tree(self._root)
        arguments = ("plan", self._file.name, "--root", self._root.name)
        shown = self._stage.kelpie_on_terminal(*arguments, colored=self._tell.colored)
        self._tell.line(f"  $ kelpie {' '.join(arguments)}")
        text = _COLOR.sub("", shown.stdout)
        self._tell.quote("\n".join(_excerpt(shown.stdout.splitlines())))
        named = _PLAN_ID.search(text)
        if named is None:
            raise ClaimError("kelpie plan names the plan", "plan-...", shown)
        self._plan = self._stage.get(f"/v1/plans/{named[0]}")
        self._tell.equal(
            "kelpie plan exits with 2: there are changes",
            expected=CHANGES_STATUS,
            seen=shown.status,
        )
        self._check_diffs(text)
        self._tell.equal("it changed nothing", expected=before, seen=read_tree(self._root))

    def _check_diffs(self, text: str) -> None:
        actions = Counter(unit["action"] for unit in self._plan["units"])
        self._tell.true(
            f"it would create {actions['create']}, update {actions['update']} and delete "
            f"{actions['delete']}, and leave {actions['none']} alone",
            actions["create"] and actions["update"] and actions["delete"],
            expected="some of each",
            seen=actions,
        )
        changed = {unit["path"] for unit in self._plan["units"] if unit["action"] != "none"}
        files = {file["path"]: file["diff"] for file in self._plan["files"]}
        lines = text.splitlines()
        missing = [
            path
            for path in changed
            if not files.get(path) or not any(line.endswith(f" {path}") for line in lines)
        ]
        self._tell.equal(
            f"each of the {len(changed)} changes is shown with its diff", expected=[], seen=missing
        )

    def _ask(self) -> subprocess.Popen[str]:
        self._tell.chapter("One Diff Card for the whole plan; kill -9 in its middle")
        self._tell.line(f"  $ kelpie apply --plan {self._plan['plan_id']}")
        apply = self._stage.spawn_kelpie("apply", "--plan", self._plan["plan_id"])
        self._effect = effect = self._stage.waiting("plan.apply")
        show_card(self._stage, self._tell, effect["effect_id"], lines_max=EXCERPT_LINES)
        self._tell.equal(
            f"kelpie apply asks once, for all {self._changes_count} changes, and changes nothing",
            expected=(effect["effect_id"], "red", self._changes_count, self._scene.existing),
            seen=(
                self._stage.get(f"/v1/plans/{self._plan['plan_id']}")["grant"],
                effect["verdict"]["color"],
                len(effect["card"]["files"]),
                read_tree(self._root),
            ),
        )
        return apply

    def _kill_in_the_middle(self) -> Cut:
        """Approve, kill the server as soon as enough units have finished, read the journal."""
        target = max(int(self._changes_count * KILL_AFTER), 1)
        approve = threading.Thread(
            target=self._stage.kelpie,
            args=("approvals", "approve", self._effect["effect_id"]),
        )
        stream = self._stage.follow(self._actor, self._stage.patience_s)
        approve.start()
        finished = 0
        try:
            for line in stream.iter_lines():
                finished += line == "event: unit.finished"
                if finished >= target or line == "event: plan.finished":
                    break
        except httpx.HTTPError as error:
            raise ClaimError("the plan's events arrive", "events", repr(error)) from error
        finally:
            pid, status = self._stage.server_pid, self._stage.kill_server()
            stream.close()
            approve.join()
        self._tell.equal(f"kill -9 {pid}, the executing process", expected=-9, seen=status)
        return self._read_cut()

    def _read_cut(self) -> Cut:
        listed = self._stage.kelpie("events", "tail", "--actor", self._actor, "--json")
        events = [json.loads(line) for line in listed.stdout.splitlines()]
        return Cut(*(self._units(events, kind) for kind in ("unit.started", "unit.finished")))

    def _prove_cut(self, cut: Cut, apply: subprocess.Popen[str]) -> None:
        started, total = len(cut.started), self._changes_count
        self._tell.true(
            f"the journal on disk, read while no server runs: unit {started} of {total} had "
            f"started, {len(cut.finished)} had finished",
            0 < len(cut.finished) <= started and len(cut.finished) < total,
            expected=f"more than none, fewer than {total}",
            seen=cut,
        )
        output, _ = apply.communicate(timeout=self._stage.patience_s)
        self._tell.true(
            "kelpie apply, which followed it, says how to go on: kelpie apply --plan ID",
            apply.returncode != 0 and f"kelpie apply --plan {self._plan['plan_id']}" in output,
            expected="a status other than 0, and the next command",
            seen=(apply.returncode, output[-300:]),
        )

    def _resume(self, cut: Cut) -> None:
        self._tell.chapter("Restarted, the plan resumes by itself")
        self._stage.start_server()
        done = self._stage.kelpie("apply", "--plan", self._plan["plan_id"])
        self._tell.equal(
            "kelpie apply --plan ID sees it end: applied",
            expected=(0, "applied"),
            seen=(done.status, self._stage.get(f"/v1/plans/{self._plan['plan_id']}")["status"]),
        )
        events = self._stage.pages("/v1/events", "events", actor=self._actor)
        ends = [each["body"] for each in events if each["kind"] == "unit.finished"]
        self._tell.equal(
            f"each of the {self._changes_count} units was finished once, done",
            expected=(self._changes_count, {1}, {"done"}),
            seen=(
                len(ends),
                set(Counter(each["unit_id"] for each in ends).values()),
                {each["status"] for each in ends},
            ),
        )
        self._check_attempts(events, ends, cut)
        self._tell.equal(
            "the root holds exactly what the plan promised",
            expected=self._scene.after(),
            seen=read_tree(self._root),
        )

    def _check_attempts(
        self, events: list[dict[str, Any]], ends: list[dict[str, Any]], cut: Cut
    ) -> None:
        """Claim that nothing which had finished before the crash was started again."""
        early = {each["effect_id"] for each in ends if each["unit_id"] in cut.finished}
        attempts = Counter(
            each["body"]["effect_id"] for each in events if each["kind"] == "effect.started"
        )
        again = [effect_id for effect_id in early if attempts[effect_id] != 1]
        self._tell.equal(
            f"of the {len(early)} units that had finished before the crash, none started again",
            expected=[],
            seen=again,
        )
        asked = [each for each in events if each["kind"] == "effect.waiting"]
        self._tell.equal("nobody was asked a second time", expected=1, seen=len(asked))

    def _plan_again(self) -> None:
        again = self._stage.kelpie("plan", self._file.name, "--root", self._root.name)
        self._tell.quote(again.stdout)
        self._tell.equal(
            "a second kelpie plan is empty, and exits with 0",
            expected=(0, 1, True),
            seen=(again.status, len(again.stdout.splitlines()), "nothing to" in again.stdout),
        )

    # --- steps ----------------------------------------------------------------------------------

    def _finish_lost_race(self, apply: subprocess.Popen[str]) -> None:
        self._stage.start_server()
        apply.communicate(timeout=self._stage.patience_s)

    @staticmethod
    def _units(events: list[dict[str, Any]], kind: str) -> frozenset[str]:
        return frozenset(each["body"]["unit_id"] for each in events if each["kind"] == kind)


def _excerpt(lines: list[str]) -> list[str]:
    """Return a plan's output with one unit of each sort, and say where some are left out."""
    chosen: list[str] = []
    sorts: set[str] = set()
    hidden, taken = 0, True
    for line in lines[:-1]:
        head = _COLOR.sub("", line)
        if not head.startswith(" "):
            sort = " ".join(head.split()[:2])
            taken = sort not in sorts
            sorts.add(sort)
            hidden += not taken
        if taken:
            if hidden:
                chosen.append(f"({hidden} more like these)")
                hidden = 0
            chosen.append(line)
    if hidden:
        chosen.append(f"({hidden} more like these)")
    return [*chosen, *lines[-1:]]
