"""The how-to about effects of actors: its code runs as it is printed, and type-checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.tree import ROOT

PAGE = ROOT / "docs" / "how-to" / "effects-of-actors.md"
FENCE = "```"


@pytest.mark.requirement("ACTOR-EFFECTS")
@pytest.mark.timeout(120)
def test_the_program_of_the_page_waits_for_its_yes_and_type_checks(tmp_path: Path) -> None:
    pieces = PAGE.read_text(encoding="utf-8").split(f"{FENCE}python\n")[1:]
    assert len(pieces) == 3
    file = tmp_path / "refunds.py"
    file.write_text("\n\n".join(piece.split(f"\n{FENCE}")[0] for piece in pieces) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", "import asyncio, refunds; asyncio.run(refunds.main())"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "Pay 500 cents back for order order-17 {'order': 'order-17', 'cents': 500}",
        "done",
    ]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(file)],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
