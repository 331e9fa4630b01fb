"""The test harness itself: async tests, system packages, waiting, the coverage ratchet."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins.async_tests import make_runner
from tests.plugins.coverage_ratchet import Judged, describe, judge, raise_baseline
from tests.system import require_program
from tests.waiting import eventually, eventually_async


async def test_an_async_test_runs_on_a_running_loop() -> None:
    assert asyncio.get_running_loop().is_running()


@given(number=st.integers())
async def test_a_property_may_be_async(number: int) -> None:
    await asyncio.sleep(0)
    assert number + 1 > number


@pytest.mark.parametrize("word", ["a"])
async def test_an_async_test_takes_fixtures_and_parameters(
    word: str, request: pytest.FixtureRequest
) -> None:
    assert request.node.callspec.params == {"word": word}


def test_an_async_test_that_is_late_fails() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        make_runner(wait_for_nothing, deadline_s=0.01)()


def test_an_async_test_that_leaves_a_task_fails() -> None:
    kept = []

    async def leave_a_task() -> None:
        kept.append(asyncio.create_task(asyncio.Event().wait()))

    with pytest.raises(AssertionError, match="left tasks running"):
        make_runner(leave_a_task, deadline_s=1)()


def test_a_missing_program_fails_with_the_command_that_installs_it() -> None:
    assert require_program("sh", package="dash").endswith("/sh")
    with pytest.raises(pytest.fail.Exception, match="apt-get install -y some-package"):
        require_program("no-such-program", package="some-package")


def test_waiting_ends_when_the_probe_is_true_and_fails_when_it_stays_false() -> None:
    answers = iter([False, False, True])
    eventually(lambda: next(answers), within_s=10, what="the third answer")
    assert list(answers) == []
    with pytest.raises(AssertionError, match="not within 0 s: the moon"):
        eventually(lambda: False, within_s=0, what="the moon")


async def test_waiting_in_a_loop_ends_when_the_probe_is_true() -> None:
    answers = iter([False, True])

    async def probe() -> bool:
        return next(answers)

    await eventually_async(probe, within_s=10, what="the second answer")
    assert list(answers) == []


def report(**files: tuple[int, int]) -> dict[str, object]:
    return {
        "files": {
            f"src/kelpie/{name}/a.py": {
                "summary": {"covered_branches": covered, "num_branches": branches}
            }
            for name, (covered, branches) in files.items()
        }
    }


def baseline(*, best: float) -> dict[str, dict[str, object]]:
    return {
        "all": {"paths": ["src/kelpie/"], "branch_percent_min": 85, "branch_percent": best},
        "store": {"paths": ["src/kelpie/storage/"], "branch_percent_min": 90, "branch_percent": 90},
    }


def test_coverage_below_the_floor_or_below_the_best_is_low() -> None:
    (low,) = judge(baseline(best=0), report(core=(84, 100)))
    assert low.is_low
    (dropped,) = judge(baseline(best=95.0), report(core=(94, 100)))
    assert dropped.is_low
    assert describe(dropped) == "all          94.0 %, at least 94.5 %: TOO LOW"


def test_coverage_within_the_noise_of_the_best_is_enough() -> None:
    (kept,) = judge(baseline(best=95.0), report(core=(947, 1000)))
    assert not kept.is_low


def test_a_group_is_judged_by_its_own_files_and_a_room_without_files_is_not() -> None:
    judged = judge(baseline(best=85), report(core=(100, 100), storage=(89, 100)))
    assert [(row.group, row.is_low) for row in judged] == [("all", False), ("store", True)]
    assert [row.group for row in judge(baseline(best=85), report(core=(1, 1)))] == ["all"]


def test_a_group_that_exists_and_was_not_measured_is_low() -> None:
    judged = judge(baseline(best=85), report(core=(0, 0)))
    assert judged == [Judged("all", None, 85)]
    assert judged[0].is_low


def test_the_baseline_rises_and_never_falls() -> None:
    risen = json.loads(raise_baseline(baseline(best=90.0), [Judged("all", 95.26, 90)]))
    assert risen["all"]["branch_percent"] == 95.3
    kept = json.loads(raise_baseline(baseline(best=90.0), [Judged("all", 88.0, 90)]))
    assert kept["all"]["branch_percent"] == 90.0


def test_assertions_are_not_optimised_away() -> None:
    assert sys.flags.optimize == 0
