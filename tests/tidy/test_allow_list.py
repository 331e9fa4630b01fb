"""What the style program lets pass may only shrink, and the coverage it asks for only grow."""

from __future__ import annotations

import json
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

from tests.plugins.coverage_ratchet import BASELINE
from tests.tidy.tree import ALLOW_LIST, ROOT, relative

if TYPE_CHECKING:
    from pathlib import Path


def read_allow_list() -> dict[str, Any]:
    return tomllib.loads(ALLOW_LIST.read_text(encoding="utf-8"))


def read_committed(path: Path) -> str:
    """The file as the last commit has it, or as it is where there is no history."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:{relative(path)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout if shown.returncode == 0 else path.read_text(encoding="utf-8")


def test_the_allow_list_has_as_many_entries_as_it_says_and_a_reason_for_each() -> None:
    document = read_allow_list()
    entries = document.get("allow", [])
    assert len(entries) == document["entries_max"], "lower entries_max when an entry goes"
    for entry in entries:
        assert set(entry) == {"rule", "where", "reason"}, entry
        assert entry["reason"].strip(), entry


def test_no_commit_raises_the_size_of_the_allow_list() -> None:
    bound = tomllib.loads(read_committed(ALLOW_LIST))["entries_max"]
    entries_max = read_allow_list()["entries_max"]
    assert entries_max <= bound, f"the allow-list may only shrink: {entries_max} > {bound}"


def test_no_commit_lowers_the_coverage_that_is_asked_for() -> None:
    committed = json.loads(read_committed(BASELINE))
    asked = json.loads(BASELINE.read_text(encoding="utf-8"))
    assert asked["overall"]["branch_percent_min"] >= 85
    for group, row in committed.items():
        for bound in ("branch_percent_min", "branch_percent"):
            assert asked[group][bound] >= row[bound], f"{group}: {bound} may only rise"
