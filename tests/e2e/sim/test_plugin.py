"""The pytest plugin in a project of a user's own, and the tutorial that is written around it."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path
from tomllib import loads

import pytest

from tests.e2e.sim.desk import PAGE, TEST, Desk

pytestmark = [pytest.mark.requirement("SIM-PLUGIN"), pytest.mark.timeout(300)]

REPLAY = re.compile(r"^pytest (\S+) --sim-replay (\S+)$", re.MULTILINE)
SIMPLE = """
from kelpie.sim.testing import simulate

SEEN = []

@simulate(seeds=4, faults={faults!r})
async def test_it_lives(world, tmp_path):
    SEEN.append(world.seed)
    assert tmp_path.is_dir()
    world.sometimes("it is the third", len(SEEN) == 3)
    world.sometimes("never", False)
    {line}

def test_the_seeds_that_were_seen():
    print("seen", SEEN)
"""


@pytest.mark.requirement("SIM-TUTORIAL")
def test_the_tutorial_finds_its_bug_replays_it_and_repairs_it(desk: Desk) -> None:
    found = desk.pytest("--sim-seed", "1")
    assert found.returncode == 1, found.stdout
    assert "an order is paid once: order-" in found.stdout
    assert "was paid 1000 cents, it costs 500" in found.stdout
    lines = REPLAY.findall(found.stdout)
    assert len(lines) == 1, "a failure prints one replay line"
    ((node, token),) = lines

    again = desk.pytest(node, "--sim-replay", token)
    assert again.returncode == 1
    assert "the same trace" in again.stdout
    assert "simulation: 1 runs of 1 seeds" in again.stdout

    by_command = desk.kelpie("sim", "replay", TEST, token)
    assert "the same trace" in by_command.stdout, "the command line runs the same world"

    desk.repair()
    repaired = desk.pytest("--sim-seed", "1")
    assert repaired.returncode == 0, repaired.stdout
    assert "simulation: 60 runs of 60 seeds" in repaired.stdout
    assert "seeds from 1 (--sim-seed)" in repaired.stdout


@pytest.mark.requirement("SIM-TUTORIAL")
def test_the_tutorial_shows_what_its_commands_print(desk: Desk) -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = desk.pytest("--sim-seed", "1")
    ((_, token),) = REPLAY.findall(found.stdout)
    done = desk.kelpie("sim", "shrink", TEST, token)
    story = desk.kelpie("sim", "explain", done.stdout.splitlines()[-1].split()[-1])
    shown = _shapes(found.stdout + done.stdout + story.stdout)
    printed = page.partition("$ kelpie sim shrink ")[2].partition("```")[0].splitlines()[1:]
    printed += page.partition("```text\n")[2].partition("```")[0].splitlines()
    lines = [line for line in printed if not line.startswith(("  starve", "$"))]
    assert len(lines) > 12
    assert _shapes("\n".join(lines)) <= shown


def _shapes(text: str) -> set[str]:
    """The lines of a text with its numbers taken out: which seed fails first is no promise."""
    words = re.sub(r"\d+(\.\d+)?", "N", text)
    return {re.sub(r"(host|client|operation)s\b", r"\1", line) for line in words.splitlines()}


def test_a_seed_is_drawn_and_printed_and_can_be_given(desk: Desk) -> None:
    desk.write("test_shop.py", SIMPLE.format(faults="none", line="pass"))
    drawn = desk.pytest("-s")
    assert drawn.returncode == 0, drawn.stdout
    (first,) = re.findall(r"seeds from (\d+) \(--sim-seed\)", drawn.stdout)
    assert f"seen {[int(first) + each for each in range(4)]}" in drawn.stdout
    for words, environment in ((("--sim-seed", "41"), {}), ((), {"DST_SEED": "41"})):
        given = desk.pytest("-s", "--sim-seeds", "2", *words, **environment)
        assert "seen [41, 42]" in given.stdout
        assert "simulation: 2 runs of 2 seeds" in given.stdout
    assert desk.pytest(DST_SEED="x").returncode == pytest.ExitCode.USAGE_ERROR


def test_workers_share_the_drawn_seed_and_the_summary_counts_them_all(desk: Desk) -> None:
    test = (
        "from pathlib import Path\n"
        "from kelpie.sim.testing import simulate\n"
        "@simulate(seeds=1, faults='none')\n"
        "async def test_it_lives_{name}(world):\n"
        "    Path('{name}.seed').write_text(str(world.seed))\n"
    )
    desk.write("test_shop.py", test.format(name="a") + test.format(name="b"))
    done = desk.pytest("-n", "2")
    assert done.returncode == 0, done.stdout
    assert "simulation: 2 runs of 2 seeds" in done.stdout
    seeds = {(desk.directory / f"{name}.seed").read_text() for name in "ab"}
    assert len(seeds) == 1
    assert f"seeds from {seeds.pop()} (--sim-seed)" in done.stdout


def test_a_soak_that_never_reaches_a_sometimes_fails_and_names_it(desk: Desk) -> None:
    desk.write("test_shop.py", SIMPLE.format(faults="crash,network.delay", line="pass"))
    done = desk.pytest("--sim-soak", "0.01")
    assert done.returncode == 1
    assert "never reached in" in done.stdout
    assert "['never']" in done.stdout


def test_what_a_test_asserts_inside_a_world_is_shown(desk: Desk) -> None:
    desk.write("test_shop.py", SIMPLE.format(faults="none", line="assert world.seed == 7"))
    done = desk.pytest("--sim-seed", "7")
    assert done.returncode == 1
    assert "AssertionError at test_it_lives" in done.stdout
    assert "assert 8 == 7" in done.stdout
    assert REPLAY.findall(done.stdout)


def test_escapes_are_refused_and_name_the_caller(desk: Desk) -> None:
    line = "import time; time.time()"
    desk.write("test_shop.py", SIMPLE.format(faults="none", line=line))
    done = desk.pytest("--sim-seeds", "1")
    assert "EscapedSimulationError" in done.stdout
    assert "time.time reaches the real world from test_shop:" in done.stdout


def test_a_world_outside_of_a_simulated_test_says_what_is_missing(desk: Desk) -> None:
    desk.write("test_shop.py", "def test_it(world):\n    world.always('x', None)\n")
    done = desk.pytest()
    assert done.returncode == 1
    assert "decorate it with kelpie.sim.testing.simulate" in done.stdout


def test_a_replay_with_another_trace_fails_and_says_so(desk: Desk) -> None:
    desk.write("test_shop.py", SIMPLE.format(faults="none", line="pass"))
    shown = json.loads(
        desk.kelpie("sim", "run", "bank", "--seeds", "1", "--seed", "3", "--json").stdout
    )
    token = f"3:{shown['config']}:0.0.1-000000:{shown['trace_hash']}"
    done = desk.pytest("-k", "lives", "--sim-replay", token)
    assert done.returncode == 1
    assert "ANOTHER TRACE" in done.stdout
    assert "the configuration differs" in done.stdout


def test_the_installed_product_brings_the_plugin_which_costs_little(desk: Desk) -> None:
    project = loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    ((name, value),) = project["project"]["entry-points"]["pytest11"].items()
    assert name == "kelpie-sim"
    assert name == EntryPoint(name, value, "pytest11").load().PROPERTY
    code = f"import pytest, sys, {value}; print(*sys.modules)"
    desk.write("shown.py", code)
    modules = desk.words_of("shown")
    assert {each for each in modules if each.startswith("kelpie")} == {
        "kelpie",
        "kelpie.sim",
        "kelpie.sim.plugin",
    }
