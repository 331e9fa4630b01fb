"""Tokens, subjects, and what a soak left out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from kelpie.core.errors import InvalidFieldError
from kelpie.sim.run import RunReport, run
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.scenarios.counters import CountersScenario
from kelpie.sim.soak import Batch, SeedResult, Tally, batches, expected_faults, run_batch, soak
from kelpie.sim.subject import configure, find_kinds, find_subject, subject_of
from kelpie.sim.swarm import RunConfig
from kelpie.sim.token import ReplayToken, product_commit, replay_line
from kelpie.sim.world import SimulatedWorld

CALM = RunConfig(clients=1, operations=1)


@pytest.fixture(scope="module")
def calm() -> RunReport:
    """A run without faults."""
    return run(CountersScenario(), 4, CALM)


def test_a_token_reads_as_it_is_written(calm: RunReport) -> None:
    token = ReplayToken.of(calm)
    assert ReplayToken.parse(str(token)) == token
    assert token.commit == product_commit()
    assert ReplayToken.parse(" 7 ") == ReplayToken(7)
    assert str(ReplayToken(7)) == "7"
    for text in ("", "x", "-1", "1:2", "1:abc:def:ghi", f"{token}0"):
        with pytest.raises(InvalidFieldError, match="reads neither"):
            ReplayToken.parse(text)


def test_a_token_judges_a_run_by_configuration_sources_and_trace(calm: RunReport) -> None:
    token = ReplayToken.of(calm)
    assert token.judge(calm) == [f"trace {calm.trace_hash}: the same trace"]
    other = token._replace(config="0" * 12, commit="0.0.1", trace="0" * 32)
    config, sources, trace = other.judge(calm)
    assert "configuration differs" in config
    assert "other sources" in sources
    assert "ANOTHER TRACE" in trace
    assert ReplayToken(4).judge(calm) == []


def test_a_replay_line_names_everything_that_the_seed_does_not_draw(calm: RunReport) -> None:
    line = f"kelpie sim replay counters {ReplayToken.of(calm)}"
    assert replay_line(calm, "counters") == line
    assert replay_line(calm, "counters", "crash") == f"{line} --faults crash"


def test_chosen_faults_may_happen_and_no_others() -> None:
    subject = find_subject("counters")
    assert configure(subject, 5, "none").is_fault_free
    chosen = configure(subject, 5, "crash.at_any_step, network")
    network = {kind.name for kind in find_kinds("network")}
    assert chosen.faults == network | {"crash.at_any_step"}
    assert configure(subject, 5) == RunConfig.draw(5, "counters")
    for name, problem in (("nosuch", "no fault"), ("mcp.tool_fail", "due with MCP")):
        with pytest.raises(InvalidFieldError, match=problem):
            configure(subject, 5, name)


def test_a_users_own_program_is_never_drawn_a_damaged_disk() -> None:
    async def work(world: SimulatedWorld) -> None:
        assert world.config.hosts

    subject = subject_of(work, address="x.py:work")
    drawn = {name for seed in range(200) for name in configure(subject, seed).faults}
    assert len(drawn) > 30
    assert not drawn & {"storage.bit_rot", "storage.misdirected_write"}
    assert subject.name.endswith(".work")


def test_a_scenario_of_a_file_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "async def work(world): ...\nasync def more(world, x): ...\n"
        "class Day:\n    name = 'day'\n    async def run(self, world): ...\n"
    )
    assert find_subject(f"{path}:work").name == "work"
    assert find_subject(f"{path}:Day").name == "day"
    assert run(find_subject(f"{path}:Day").make(), 1, CALM).is_clean
    for name, problem in (("more", "world alone"), ("nosuch", "has no nosuch")):
        with pytest.raises(InvalidFieldError, match=problem):
            find_subject(f"{path}:{name}")
    path.write_text("raise ImportError('no luck')")
    with pytest.raises(InvalidFieldError, match="ImportError: no luck"):
        find_subject(f"{path}:work")


def _result(**changes: object) -> SeedResult:
    result = SeedResult.of(run(CountersScenario(), 4, CALM), "counters")
    return msgspec.structs.replace(result, **changes)


def test_a_tally_names_what_its_seeds_left_out() -> None:
    tally = Tally()
    tally.add(_result(injected={"a": 2}, reached={"x": 0, "y": 1}))
    tally.add(_result(injected={"a": 1}, reached={"x": 0}))
    assert tally.seeds == {"counters": 2}
    assert tally.injected == {"a": 3}
    assert tally.gaps(["a", "b"]) == [
        "fault b was never injected",
        "counters: 'x' was never reached",
    ]
    tally.add(_result(injected={"b": 1}, reached={"x": 5}))
    assert tally.gaps(["a", "b"]) == []


def test_a_soak_of_everything_expects_every_built_fault_and_a_part_expects_none() -> None:
    assert len(expected_faults([*SCENARIOS, "mine.py:day"])) >= 35
    assert expected_faults(["bank"]) == []
    assert expected_faults(["mine.py:day"]) == []
    assert expected_faults(list(SCENARIOS), "crash") == []


def test_batches_take_the_scenarios_in_turn_over_the_same_seeds() -> None:
    work = batches(["a", "b"], 100, "none")
    first, second, third = (next(work) for _ in range(3))
    assert (first.address, second.address, third.address) == ("a", "b", "a")
    assert first.seeds == second.seeds == tuple(range(100, 110))
    assert third.seeds[0] == 110


def test_a_soak_counts_every_seed_of_its_batches() -> None:
    seen: list[int] = []
    asked = iter([False, False, True, True, True])
    tally = soak(
        iter([Batch("counters", (1, 2), "none"), Batch("bank", (3,), "none")]),
        is_over=lambda: next(asked, True),
        said=lambda each: seen.append(each.seeds.total()),
    )
    assert tally.seeds == {"counters": 2, "bank": 1}
    assert seen[-1] == 3
    assert not tally.failed
    assert [each.seed for each in run_batch(Batch("bank", (3,), "none"))] == [3]
