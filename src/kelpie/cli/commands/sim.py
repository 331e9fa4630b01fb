"""``kelpie sim``: runs simulated worlds, gives failed ones again, and makes them smaller.

Each command starts over with a fixed hash seed before it runs anything, so that programs which
depend on the order of a set behave as they did.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import click
import msgspec

from kelpie.app.text import safe_line
from kelpie.cli.debugging import say_lines, step_over
from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed
from kelpie.sim.debug import Debugger
from kelpie.sim.hash_seed import plan_restart
from kelpie.sim.run import RunReport, run
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.shrink import ATTEMPTS_MAX, Shrinker, SmallRun
from kelpie.sim.soak import (
    Batch,
    SeedResult,
    Tally,
    batches,
    expected_faults,
    run_batch,
    soak,
)
from kelpie.sim.subject import SWARM, Subject, configure, find_subject, require_faults
from kelpie.sim.timeline import Timeline
from kelpie.sim.token import ReplayToken, product_commit, replay_line
from kelpie.sim.world import SimulatedWorld

SEED_BOUND: Final = 1 << 32
SAY_EVERY_S: Final = 10.0

_Watch = Callable[[SimulatedWorld], None]

_faults = click.option(
    "--faults",
    default=SWARM,
    show_default=True,
    metavar="swarm|none|NAME,...",
    help="What may go wrong: each seed's own draw, nothing, or these faults and groups.",
)


class Ran(NamedTuple):
    """A run that was asked for by name."""

    timeline: Timeline
    report: RunReport
    subject: Subject
    remarks: list[str]
    is_same: bool


@click.group()
def sim() -> None:
    """Run simulated worlds under seeded faults, and look into them."""


@sim.command(name="run")
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0), help="The first seed; drawn and printed if absent.")
@_faults
@framed(remote=False)
def run_seeds(
    frame: Frame, *, scenarios: tuple[str, ...], seeds: int, seed: int | None, faults: str
) -> int:
    """Run seeds of SCENARIOs: names of built-in ones (all by default), or file.py:scenario.

    Exit status 1: a seed failed. The line to replay it is printed.
    """
    _pin(frame)
    addresses = _require_scenarios(scenarios, faults)
    first = secrets.randbelow(SEED_BOUND) if seed is None else seed
    frame.terminal.say(f"seeds from {first}")
    tally = Tally()
    for address in addresses:
        for each in range(first, first + seeds):
            (result,) = run_batch(Batch(address, (each,), faults))
            tally.add(result)
            if frame.as_json:
                frame.terminal.data(msgspec.to_builtins(result))
            elif result.violation is not None:
                _show_failure(frame, result)
    if not frame.as_json:
        _show_tally(frame, tally, with_counts=False)
    return 1 if tally.failed else 0


@sim.command()
@click.argument("scenario")
@click.argument("token", metavar="[SEED]", required=False)
@_faults
@framed(remote=False)
def replay(frame: Frame, *, scenario: str, token: str | None, faults: str) -> int:
    """Give one run again, and say whether its trace is the same.

    SEED is a number, or the token that a failure printed; without it SCENARIO is the file of a
    shrunk run. Exit status 1: the trace is another one, or the run fails.
    """
    _pin(frame)
    ran = _run_again(frame, scenario, token, faults)
    if frame.as_json:
        result = SeedResult.of(ran.report, scenario, faults)
        same = {"is_same": ran.is_same, "remarks": ran.remarks}
        frame.terminal.data(msgspec.to_builtins(result) | same)
    else:
        say_lines(frame, [ran.timeline.verdict, *ran.remarks])
    return 0 if ran.is_same and ran.report.is_clean else 1


@sim.command()
@click.argument("scenario")
@click.argument("token", metavar="[SEED]", required=False)
@_faults
@framed(remote=False)
def explain(frame: Frame, *, scenario: str, token: str | None, faults: str) -> int:
    """Tell what happened in one run: who committed what, what was injected, what went wrong.

    SEED is a number or a token; without it SCENARIO is the file of a shrunk run.
    """
    _pin(frame)
    ran = _run_again(frame, scenario, token, faults)
    story = list(ran.timeline.tell())
    if frame.as_json:
        frame.terminal.data({"story": story, "remarks": ran.remarks})
    else:
        say_lines(frame, story)
        for remark in ran.remarks:
            frame.terminal.say(safe_line(remark))
    return 0


@sim.command()
@click.argument("scenario")
@click.argument("token", metavar="SEED")
@click.option("--output", "-o", metavar="FILE", help="Where to put it; SCENARIO-SEED.run.json.")
@click.option(
    "--attempts",
    type=click.IntRange(1),
    default=ATTEMPTS_MAX,
    show_default=True,
    help="How many runs it may take.",
)
@_faults
@framed(remote=False)
def shrink(
    frame: Frame, *, scenario: str, token: str, output: str | None, attempts: int, faults: str
) -> int:
    """Make a failing run smaller: fewer faults, fewer operations, a plainer schedule.

    What it finds fails the same invariant; it is written to FILE, which `replay`, `explain` and
    `debug` take.
    """
    _pin(frame)
    subject, first = _require_subject(frame, scenario, faults), ReplayToken.parse(token)
    report = run(subject.make(), first.seed, configure(subject, first.seed, faults))
    shrinker = Shrinker(subject, report, attempts_max=attempts, say=frame.terminal.say)
    small = shrinker.shrink(product_commit())
    timeline, _ = _observe(lambda watch: small.repeat(subject, watch=watch))
    small = msgspec.structs.replace(
        small, story=tuple(timeline.show_fault(each) for each in timeline.faults)
    )
    name = output or f"{subject.name}-{first.seed}.run.json"
    path = frame.path(name)
    path.write_bytes(small.encode())
    if frame.as_json:
        frame.terminal.data({"file": name, "attempts": shrinker.attempts, "story": small.story})
        return 0
    say_lines(
        frame,
        [
            timeline.verdict,
            f"faults: {len(report.injections)} → {len(small.script)}",
            *(f"  {line}" for line in small.story),
            f"seed {small.seed}: {_sizes(small)}, {len(small.choices)} choices of the schedule",
            f"kelpie sim replay {name}",
        ],
    )
    frame.terminal.say(f"{shrinker.attempts} runs")
    return 0


@sim.command(name="soak")
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option(
    "--minutes",
    type=click.FloatRange(0.01),
    default=10.0,
    show_default=True,
    help="How long.",
)
@click.option("--seed", type=click.IntRange(0), help="The first seed; drawn and printed if absent.")
@_faults
@framed(remote=False)
def soak_seeds(
    frame: Frame, *, scenarios: tuple[str, ...], minutes: float, seed: int | None, faults: str
) -> int:
    """Run seeds on two processes for some minutes, and count what was injected and reached.

    Exit status 1: a seed failed, a built fault was never injected, or a `sometimes` never reached.
    """
    _pin(frame)
    addresses = _require_scenarios(scenarios, faults)
    first = secrets.randbelow(SEED_BOUND) if seed is None else seed
    frame.terminal.say(f"seeds from {first}")
    ends = time.monotonic() + minutes * 60
    tally = soak(
        batches(addresses, first, faults),
        is_over=lambda: time.monotonic() >= ends,
        said=_Progress(frame),
    )
    gaps = tally.gaps(expected_faults(addresses, faults))
    if frame.as_json:
        frame.terminal.data(_describe(tally, gaps))
        return 1 if gaps or tally.failed else 0
    for result in tally.failed:
        _show_failure(frame, result)
    _show_tally(frame, tally, with_counts=True)
    say_lines(frame, gaps)
    return 1 if gaps or tally.failed else 0


@sim.command()
@click.argument("scenario")
@click.argument("token", metavar="[SEED]", required=False)
@_faults
@framed(remote=False)
def debug(frame: Frame, *, scenario: str, token: str | None, faults: str) -> int:
    """Step over the commits of one run: states, messages and effects before and after each.

    SEED is a number or a token; without it SCENARIO is the file of a shrunk run. Commands come
    from a terminal or a pipe; `help` lists them.
    """
    _pin(frame)
    ran = _run_again(frame, scenario, token, faults)
    step_over(frame, lambda say: Debugger(ran.timeline, say))
    return 0


# --- running one ----------------------------------------------------------------------------------


def _pin(frame: Frame) -> None:
    """Start this command over with a fixed hash seed unless it has one."""
    restart = plan_restart(frame.world.environment, sys.orig_argv[1:])
    if restart is not None:
        sys.stdout.flush()
        os.execve(sys.executable, restart.argv, restart.environment)  # noqa: S606


def _require_subject(frame: Frame, address: str, faults: str) -> Subject:
    require_faults(faults)
    del frame
    return find_subject(address)


def _require_scenarios(addresses: tuple[str, ...], faults: str) -> tuple[str, ...]:
    require_faults(faults)
    for address in addresses:
        find_subject(address)
    return addresses or tuple(SCENARIOS)


def _observe(again: Callable[[_Watch], RunReport]) -> tuple[Timeline, RunReport]:
    worlds: list[SimulatedWorld] = []
    report = again(worlds.append)
    return Timeline.of(worlds[0], report), report


def _run_again(frame: Frame, scenario: str, token: str | None, faults: str) -> Ran:
    if token is None:
        return _run_file(frame, scenario)
    subject, wanted = _require_subject(frame, scenario, faults), ReplayToken.parse(token)
    config = configure(subject, wanted.seed, faults)
    timeline, report = _observe(lambda watch: run(subject.make(), wanted.seed, config, watch=watch))
    is_same = not wanted.trace or wanted.trace == report.trace_hash
    remarks = wanted.judge(report) or [replay_line(report, scenario, faults)]
    return Ran(timeline, report, subject, remarks, is_same)


def _run_file(frame: Frame, name: str) -> Ran:
    path = frame.path(name)
    if not path.is_file():
        text = f"{safe_line(name)} is no file of a shrunk run; a scenario needs a seed as well"
        raise CommandError("invalid_field", text, fields={"field": "scenario"}, status=2)
    small = SmallRun.decode(path.read_bytes())
    subject = find_subject(small.scenario)
    timeline, report = _observe(lambda watch: small.repeat(subject, watch=watch))
    wanted = ReplayToken(small.seed, small.config.config_hash, small.commit, small.trace_hash)
    is_same = report.trace_hash == small.trace_hash
    return Ran(timeline, report, subject, wanted.judge(report), is_same)


# --- what is printed ------------------------------------------------------------------------------


class _Progress:
    """Says now and then how far a soak is."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._last = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        if time.monotonic() - self._last < SAY_EVERY_S:
            return
        self._last = time.monotonic()
        seeds, failed = tally.seeds.total(), len(tally.failed)
        self._frame.terminal.say(f"{seeds:,} seeds, {failed:,} failed")


def _show_failure(frame: Frame, result: SeedResult) -> None:
    assert result.violation is not None, "a failure has a reason"
    what = f"{result.violation.invariant}: {result.violation.text}"
    say_lines(frame, [f"{result.scenario}, seed {result.seed}: {what}", result.replay])


def _show_tally(frame: Frame, tally: Tally, *, with_counts: bool) -> None:
    parts = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.seeds.items()))
    line = f"{tally.seeds.total():,} seeds ({parts}), {len(tally.failed):,} failed"
    hours = f"{tally.virtual_s / 3600:,.1f} simulated hours, {tally.commits:,} commits"
    faults = f"{tally.injected.total():,} faults of {len(+tally.injected)} kinds"
    say_lines(frame, [f"{line}; {hours}, {faults}"])
    if with_counts:
        rows = [["fault", name, f"{count:,}"] for name, count in sorted(tally.injected.items())]
        rows += [
            ["sometimes", f"{scenario}: {name}", f"{count:,}"]
            for (scenario, name), count in sorted(tally.reached.items())
        ]
        frame.terminal.table(["what", "name", "times"], rows)


def _describe(tally: Tally, gaps: list[str]) -> dict[str, Any]:
    return {
        "seeds": dict(tally.seeds),
        "injected": dict(sorted(tally.injected.items())),
        "reached": {
            f"{scenario}: {name}": count
            for (scenario, name), count in sorted(tally.reached.items())
        },
        "failed": [msgspec.to_builtins(each) for each in tally.failed],
        "gaps": gaps,
    }


def _sizes(small: SmallRun) -> str:
    config = small.config
    counts = {"host": config.hosts, "client": config.clients, "operation": config.operations}
    parts = [f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items()]
    return f"{', '.join(parts)} each"
