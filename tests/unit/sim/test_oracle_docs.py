"""The page about oracles names every invariant and every mutant, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kelpie.sim.invariants import every_invariant
from tests.mutants.catalogue import MUTANTS

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "oracles.md"


def table_of(title: str) -> str:
    """Return the rows of the first table below a title."""
    part = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return part.split("---|\n")[1].split("\n\n")[0]


def names_in(title: str) -> list[str]:
    """Return the first column of the first table below a title."""
    return re.findall(r"^\| `([^`]+)` \|", table_of(title), re.MULTILINE)


@pytest.mark.requirement("SIM-ORACLES")
def test_the_page_lists_every_invariant() -> None:
    assert names_in("Invariants") == [each.name for each in every_invariant()]


@pytest.mark.requirement("SIM-MUTANTS")
def test_the_page_lists_every_mutant_and_none_is_without_its_seeds() -> None:
    assert names_in("Mutants") == [mutant.name for mutant in MUTANTS]
    assert "| ? |" not in PAGE.read_text()
    for mutant in MUTANTS:
        assert f"| `{mutant.name}` | `{mutant.file}` | `{mutant.scenario}`" in table_of("Mutants")
