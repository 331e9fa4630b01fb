"""The commands of `kelpie sim`, as processes: over scenarios that ship and over a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.sim.desk import TEST, Desk

pytestmark = [pytest.mark.requirement("SIM-COMMANDS"), pytest.mark.timeout(300)]

PAID_TWICE = "was paid 1000 cents, it costs 500"


@pytest.fixture(scope="module")
def failed(shared_desk: Desk) -> dict[str, Any]:
    """The first seed of the tutorial's test that fails."""
    words = ("sim", "run", TEST, "--seed", "1", "--seeds", "60", "--json")
    done = shared_desk.kelpie(*words)
    assert done.returncode == 1, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 60
    return next(each for each in results if each["violation"])


@pytest.fixture(scope="module")
def shrunk(shared_desk: Desk, failed: dict[str, Any]) -> Path:
    """The file of that seed, made smaller."""
    words = ("sim", "shrink", TEST, str(failed["seed"]), "--output", "small.run.json")
    done = shared_desk.kelpie(*words)
    assert done.returncode == 0, done.stderr
    assert PAID_TWICE in done.stdout
    assert "kelpie sim replay small.run.json" in done.stdout
    return shared_desk.directory / "small.run.json"


@pytest.mark.covers("kelpie sim run")
def test_seeds_run_under_a_drawn_seed_that_is_printed(shared_desk: Desk) -> None:
    done = shared_desk.kelpie("sim", "run", "bank", "counters", "--seeds", "2")
    assert done.returncode == 0, done.stdout
    assert done.stderr.startswith("seeds from ")
    assert done.stdout.startswith("4 seeds (bank 2, counters 2), 0 failed; ")


@pytest.mark.covers("kelpie sim run")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nosuch",), "there is no 'nosuch'; there are agent_day, bank"),
        (("bank", "--faults", "nosuch"), "'nosuch' is no fault of the catalogue"),
        (("bank", "--faults", "mcp.tool_fail"), "mcp.tool_fail is due with MCP"),
        (("shop.py:Nobody",), "shop.py has no Nobody"),
        (("nowhere.py:work",), "there is no file nowhere.py"),
        (("shop.py:Buyer.buy",), "shop.py has no Buyer.buy"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_can(
    shared_desk: Desk, words: tuple[str, ...], said: str
) -> None:
    done = shared_desk.kelpie("sim", "run", *words)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.covers("kelpie sim run")
def test_traces_are_equal_across_processes_and_hash_seeds(shared_desk: Desk) -> None:
    words = ("sim", "run", TEST, "bank", "--seed", "20", "--seeds", "4", "--json")
    shown = {
        tuple(json.loads(line)["trace_hash"] for line in done.stdout.splitlines())
        for seed in ("", "0", "7", "4711")
        for done in [shared_desk.kelpie(*words, **({"PYTHONHASHSEED": seed} if seed else {}))]
    }
    assert len(shown) == 1, shown
    (traces,) = shown
    assert len(set(traces)) == 8


@pytest.mark.covers("kelpie sim replay")
def test_a_replay_line_gives_the_same_trace(shared_desk: Desk, failed: dict[str, Any]) -> None:
    words = failed["replay"].split()
    assert words[:3] == ["kelpie", "sim", "replay"]
    done = shared_desk.kelpie(*words[1:])
    assert done.returncode == 1, "the run fails again"
    assert PAID_TWICE in done.stdout
    assert f"trace {failed['trace_hash']}: the same trace" in done.stdout


@pytest.mark.covers("kelpie sim replay")
def test_a_replay_says_what_differs(shared_desk: Desk, failed: dict[str, Any]) -> None:
    words = failed["replay"].split()[1:]
    done = shared_desk.kelpie(*words, "--faults", "none")
    assert done.returncode == 1
    assert "the configuration differs" in done.stdout
    assert "ANOTHER TRACE" in done.stdout
    seed, config, _, trace = words[-1].split(":")
    other = shared_desk.kelpie(*words[:-1], f"{seed}:{config}:0.0.1-000000:{trace}", "--json")
    shown = json.loads(other.stdout)
    assert shown["is_same"] is True
    assert "other sources: " in shown["remarks"][0]


@pytest.mark.covers("kelpie sim replay")
def test_a_clean_seed_replays_with_its_line_and_no_token_is_refused(shared_desk: Desk) -> None:
    done = shared_desk.kelpie("sim", "replay", "bank", "10")
    assert done.returncode == 0
    clean, line = done.stdout.splitlines()
    assert clean.startswith("clean: ")
    again = shared_desk.kelpie(*line.split()[1:])
    assert again.returncode == 0
    assert "the same trace" in again.stdout
    assert shared_desk.kelpie("sim", "replay", "bank", "1:2").returncode == 2
    assert shared_desk.kelpie("sim", "replay", "bank").returncode == 2


@pytest.mark.covers("kelpie sim shrink")
def test_a_shrunk_run_needs_fewer_faults_and_says_them_in_words(
    shrunk: Path, failed: dict[str, Any]
) -> None:
    small = json.loads(shrunk.read_bytes())
    assert small["invariant"] == "an order is paid once"
    assert len(small["script"]) <= sum(failed["injected"].values())
    assert len(small["story"]) == len(small["script"])
    assert small["config"]["operations"] <= 2
    assert len(small["config"]["rules"]) <= len(small["script"])


@pytest.mark.covers("kelpie sim replay")
def test_the_file_of_a_shrunk_run_replays_with_the_same_trace(
    shared_desk: Desk, shrunk: Path
) -> None:
    done = shared_desk.kelpie("sim", "replay", shrunk.name)
    assert done.returncode == 1
    assert PAID_TWICE in done.stdout
    assert "the same trace" in done.stdout


@pytest.mark.covers("kelpie sim shrink")
def test_there_is_nothing_to_shrink_in_a_clean_seed(shared_desk: Desk) -> None:
    done = shared_desk.kelpie("sim", "shrink", "bank", "10")
    assert done.returncode == 2
    assert "seed 10 is clean" in done.stderr


@pytest.mark.covers("kelpie sim explain")
def test_the_story_of_a_run_is_told_in_the_words_of_the_domain(
    shared_desk: Desk, shrunk: Path
) -> None:
    done = shared_desk.kelpie("sim", "explain", shrunk.name)
    assert done.returncode == 0
    assert "its reminder 'no answer' fired" in done.stdout
    assert "state: paid.order-0 500 → 1000" in done.stdout
    assert "Till/main v2 on n1" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("FAILED at ")
    shown = json.loads(shared_desk.kelpie("sim", "explain", "agent_day", "11", "--json").stdout)
    assert any("model.generate 1: started" in line for line in shown["story"])


@pytest.mark.covers("kelpie sim debug")
def test_time_travel_shows_states_messages_and_effects_before_and_after(
    shared_desk: Desk, shrunk: Path
) -> None:
    asked = "break\nstate main\np\nstate main\nmessages\ngoto 1\ndiff\nnosuch\nquit\nn\n"
    done = shared_desk.kelpie("sim", "debug", shrunk.name, stdin=asked)
    assert done.returncode == 0, done.stderr
    at_break, _, rest = done.stdout.partition('"order-0": 1000')
    assert "FAILED at" in at_break
    before, _, rest = rest.partition('"order-0": 500')
    assert "Buyer/order-0" in before
    assert "pay(order='order-0', cents=500)" in rest
    assert '+  "cents": 500,' in rest
    assert "no command 'nosuch'" in rest
    assert done.stdout.splitlines()[-1].startswith("no command"), "nothing follows quit"


@pytest.mark.covers("kelpie sim debug")
def test_the_effects_of_an_agent_are_seen_as_of_a_commit(shared_desk: Desk) -> None:
    asked = "effects\nn 3\neffects\nn 9999\neffects\nbreak versions-grow\nfaults\nlist 1\nhelp\n"
    done = shared_desk.kelpie("sim", "debug", "agent_day", "10", stdin=asked)
    assert done.returncode == 0, done.stderr
    none_yet, _, rest = done.stdout.partition("model.generate  started")
    assert "no effect yet" in none_yet
    assert "model.generate  done" in rest
    assert "versions-grow held at all" in rest
    assert "nothing was injected" in rest, "one seed in ten has no fault"
    assert "break INVARIANT" in rest


@pytest.mark.covers("kelpie sim soak")
def test_a_soak_counts_and_names_what_it_left_out(shared_desk: Desk) -> None:
    done = shared_desk.kelpie("sim", "soak", "--minutes", "0.02", "--seed", "1", "--json")
    assert done.returncode == 1, "a second injects not every fault"
    shown = json.loads(done.stdout)
    assert sum(shown["seeds"].values()) >= 10
    assert shown["failed"] == []
    assert shown["injected"]
    assert any(gap.endswith("was never injected") for gap in shown["gaps"])
    assert "agent_day: a run completed" in shown["reached"]


@pytest.mark.covers("kelpie sim soak")
def test_a_soak_of_one_scenario_prints_its_tally(shared_desk: Desk) -> None:
    words = ("bank", "--minutes", "0.02", "--seed", "1", "--faults", "network,time.node_pause")
    done = shared_desk.kelpie("sim", "soak", *words)
    assert done.returncode == 0, done.stdout
    assert "seeds (bank " in done.stdout
    assert "bank: money moved" in done.stdout
    assert "storage." not in done.stdout


@pytest.mark.covers("kelpie sim soak")
def test_a_soak_prints_the_replay_line_of_what_failed(shared_desk: Desk) -> None:
    done = shared_desk.kelpie("sim", "soak", TEST, "--minutes", "0.02", "--seed", "1")
    assert done.returncode == 1
    assert PAID_TWICE in done.stdout
    assert f"kelpie sim replay {TEST} " in done.stdout
