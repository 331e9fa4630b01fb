"""Shrinking keeps the failure and drops the rest; time travel shows what was left behind."""

from __future__ import annotations

import asyncio

import pytest

from kelpie.core.errors import InvalidFieldError
from kelpie.sim.debug import Debugger, drive
from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.invariants import every_invariant
from kelpie.sim.run import RunReport, run
from kelpie.sim.scenarios.counters import SimCounter, SimTally
from kelpie.sim.shrink import Shrinker, SmallRun, cut_down
from kelpie.sim.subject import Subject, subject_of
from kelpie.sim.swarm import RunConfig
from kelpie.sim.testing import serve, states
from kelpie.sim.timeline import Timeline
from kelpie.sim.view import View
from kelpie.sim.wording import show_message, show_value
from kelpie.sim.world import SimulatedWorld

RULES = tuple(
    FaultRule(name=name, rate=1.0, count_max=3)
    for name in ("time.clock_skew", "time.node_pause", "network.delay")
)
CONFIG = RunConfig(scheduler="random", clients=4, operations=5, rules=RULES, crash_steps=(40,))


def at_most_two(view: View) -> str | None:
    tallies = states(view, SimCounter)
    over = [name for name, tally in tallies.items() if tally.additions > 2]
    return f"{over[0]} was added to too often" if over else None


async def count(world: SimulatedWorld) -> None:
    """Fails as soon as somebody adds three times while the machine was paused once."""
    client = await serve(world, SimCounter)

    def judge(view: View) -> str | None:
        return at_most_two(view) if world.plan.injected["time.node_pause"] else None

    world.always("at-most-two", judge)
    for turn in range(world.config.clients * world.config.operations):
        await client.ref(SimCounter, f"c{turn % 2}").add(turn)
        await asyncio.sleep(1)


SUBJECT = subject_of(count, address="here.py:count")


@pytest.fixture(scope="module")
def failed() -> RunReport:
    """A run that fails, with more faults and operations than it needs."""
    report = run(SUBJECT.make(), 3, CONFIG)
    assert report.violation is not None
    assert report.violation.invariant == "at-most-two"
    assert len(report.injections) > 3
    return report


@pytest.fixture(scope="module")
def small(failed: RunReport) -> SmallRun:
    """The same, made smaller."""
    return Shrinker(SUBJECT, failed).shrink("here")


def test_one_pause_and_six_additions_are_left(small: SmallRun, failed: RunReport) -> None:
    assert [each.name for each in small.script] == ["time.node_pause"]
    assert [rule.name for rule in small.config.rules] == ["time.node_pause"]
    assert small.config.crash_steps == ()
    assert small.config.clients * small.config.operations in range(5, 9)
    assert small.choices == (), "first in, first out fails as well"
    assert small.invariant == "at-most-two"
    assert small.seed == failed.seed


def test_a_small_run_survives_its_file_and_gives_the_same_trace(small: SmallRun) -> None:
    read = SmallRun.decode(small.encode())
    assert read == small
    report = read.repeat(SUBJECT)
    assert report.trace_hash == small.trace_hash
    assert report.violation is not None
    assert report.violation.invariant == small.invariant


def test_a_file_that_holds_no_run_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match="the file holds no run"):
        SmallRun.decode(b'{"type": "other"}')


def test_a_clean_run_is_not_shrunk() -> None:
    with pytest.raises(InvalidFieldError, match="seed 3 is clean"):
        Shrinker(SUBJECT, run(SUBJECT.make(), 3, RunConfig(clients=1, operations=1)))


def test_shrinking_keeps_to_its_number_of_attempts(failed: RunReport) -> None:
    shrinker = Shrinker(SUBJECT, failed, attempts_max=2)
    assert shrinker.shrink("here").invariant == "at-most-two"
    assert shrinker.attempts == 2


def test_a_schedule_that_matters_is_kept() -> None:
    """The failure needs a choice that is not first in, first out."""

    async def race(world: SimulatedWorld) -> None:
        order: list[int] = []

        async def arrive(number: int) -> None:
            order.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(arrive(number))
        assert order[0] == 0, "somebody overtook the first"

    subject = Subject("race", "here.py:race", subject_of(race).make, ships=False)
    config = RunConfig(scheduler="random")
    report = next(
        each for each in (run(subject.make(), s, config) for s in range(20)) if each.violation
    )
    small = Shrinker(subject, report).shrink("here")
    assert 1 <= len(small.choices) <= 2
    assert small.repeat(subject).trace_hash == small.trace_hash


@pytest.mark.parametrize("needed", [(), (3,), (0, 7), (1, 2, 6)])
def test_what_is_cut_down_holds_what_is_needed_and_no_more(needed: tuple[int, ...]) -> None:
    assert cut_down(range(8), lambda kept: set(needed) <= set(kept)) == needed


def test_the_story_says_what_went_on_when_a_fault_happened(small: SmallRun) -> None:
    worlds: list[SimulatedWorld] = []
    report = small.repeat(SUBJECT, watch=worlds.append)
    timeline = Timeline.of(worlds[0], report)
    (fault,) = timeline.faults
    shown = timeline.show_fault(fault)
    assert shown.startswith("pause n1 ")
    assert " s " in shown
    assert "at-most-two" in timeline.verdict
    assert {each.name for each in every_invariant()} < set(timeline.invariants)


def test_the_debugger_moves_within_the_run_and_shows_where_it_stands(small: SmallRun) -> None:
    worlds: list[SimulatedWorld] = []
    report = small.repeat(SUBJECT, watch=worlds.append)
    said: list[str] = []
    debugger = Debugger(Timeline.of(worlds[0], report), said.append)
    last = report.commits
    lines = [
        "n",
        "n 2",
        "p",
        "goto 99",
        "p 99",
        "",
        "break",
        "break versions-grow",
        "break x",
        "n x",
    ]
    assert list(drive(debugger, [*lines, "quit", "n"])) == [
        1,
        3,
        2,
        last,
        0,
        0,
        last,
        last,
        last,
        last,
    ]
    text = "\n".join(said)
    assert "this is the last commit" in text
    assert "this is where the run begins" in text
    assert f"versions-grow held at all {last} commits" in text
    assert "no invariant 'x'" in text
    assert "'x' is no number" in text
    assert debugger.prompt == f"({last}/{last}) "


def test_the_debugger_shows_states_as_of_where_it_stands(small: SmallRun) -> None:
    worlds: list[SimulatedWorld] = []
    report = small.repeat(SUBJECT, watch=worlds.append)
    said: list[str] = []
    debugger = Debugger(Timeline.of(worlds[0], report), said.append)
    for line in ("state", "diff", "n", "state", "state c0", "state c1", "diff", "list", "messages"):
        assert debugger.obey(line)
    assert said[0] == "no actor has a state yet"
    assert said[1] == "before the first commit"
    assert "n1  sim-counter/c0  {'total': 0, 'additions': 1}" in said
    assert "no actor 'c1' here" in said
    assert said[-1] == "no message is on its way"
    assert states(worlds[0].view, SimCounter)["c0"] == SimTally(total=6, additions=3)


def test_bodies_are_shown_as_calls_and_cut_when_long() -> None:
    assert show_message(b"\x82\xa4type\xa3pay\xa5cents\x05") == "pay(cents=5)"
    assert show_message(b"\xc1") == "<1 bytes>"
    assert len(show_value("x" * 500)) == 60
