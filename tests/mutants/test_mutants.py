"""The catalogue of planted bugs is alive; `./dev test mutants` hunts all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.hunt import SOURCES, Found, StaleMutantError, hunt, live_through, mutate, plant

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
CHEAP = ("reminder-is-not-removed", "plan-ignores-its-key")
SEEDS = 40

pytestmark = [pytest.mark.requirement("SIM-MUTANTS"), pytest.mark.timeout(300)]


def test_there_are_enough_mutants_and_each_has_a_name() -> None:
    assert len(MUTANTS) >= 20
    assert len(BY_NAME) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_compiles(mutant: Mutant) -> None:
    changed = mutate(mutant)
    assert changed != (SOURCES / "kelpie" / mutant.file).read_text()
    assert changed.count(mutant.after) >= 1


def test_a_mutant_whose_text_is_gone_says_so() -> None:
    stale = Mutant(
        name="stale",
        file="actors/turns.py",
        before="this text is nowhere",
        after="",
        family="none",
        scenario="counters",
    )
    with pytest.raises(StaleMutantError, match=r"0 places in actors/turns\.py"):
        mutate(stale)


def test_a_mutant_is_planted_in_a_copy_alone(tmp_path: Path) -> None:
    mutant = BY_NAME["no-fence"]
    copy = plant(mutant, tmp_path)
    assert (copy / "kelpie" / mutant.file).read_text() == mutate(mutant)
    assert mutant.after not in (SOURCES / "kelpie" / mutant.file).read_text()


@pytest.mark.parametrize("name", CHEAP)
def test_a_cheap_mutant_is_found_and_the_clean_tree_is_not(name: str) -> None:
    mutant = BY_NAME[name]
    found: Found = hunt(mutant, seeds_max=SEEDS, workers=1)
    assert found.seeds, f"{name} is not found within {SEEDS} seeds"
    clean = live_through(mutant, SOURCES, seeds_max=found.seeds, workers=1)
    assert len(clean) == found.seeds
    assert not [line for line in clean if line["invariant"]]
