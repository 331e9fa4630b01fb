"""The allow-list may only shrink."""

from __future__ import annotations

import subprocess
import tomllib
from typing import Any

from tests.tidy.tree import ALLOW_LIST, ROOT, relative


def read_allow_list() -> dict[str, Any]:
    return tomllib.loads(ALLOW_LIST.read_text(encoding="utf-8"))


def test_the_allow_list_has_as_many_entries_as_it_says_and_a_reason_for_each() -> None:
    document = read_allow_list()
    entries = document.get("allow", [])
    assert len(entries) == document["entries_max"], "lower entries_max when an entry goes"
    for entry in entries:
        assert set(entry) == {"rule", "where", "reason"}, entry
        assert entry["reason"].strip(), entry


def test_no_commit_raises_the_size_of_the_allow_list() -> None:
    committed = subprocess.run(
        ["git", "show", f"HEAD:{relative(ALLOW_LIST)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # An unpacked sdist has no history to compare with: then the number itself is the bound.
    bound = (
        tomllib.loads(committed.stdout)["entries_max"]
        if committed.returncode == 0
        else read_allow_list()["entries_max"]
    )
    entries_max = read_allow_list()["entries_max"]
    assert entries_max <= bound, f"the allow-list may only shrink: {entries_max} > {bound}"
