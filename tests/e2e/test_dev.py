"""`./dev` on checkouts of its own: it sets up, and repairs what was interrupted.

The checkouts pin nothing, so that setting up one needs no registry.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a space in its name and nothing to install."""
    root = tmp_path / "a checkout"
    package = root / "src" / "kelpie" / "cli"
    package.mkdir(parents=True)
    (root / "requirements").mkdir()
    (root / "requirements" / "dev.txt").write_text("# nothing\n")
    (root / "src" / "kelpie" / "__init__.py").touch()
    (package / "__init__.py").write_text("def main():\n    print('this checkout')\n    return 3\n")
    (root / "tests" / "unit").mkdir(parents=True)
    (root / "tests" / "unit" / "test_nothing.py").touch()
    (root / "tests" / "plugins").mkdir()
    shutil.copy(DEV, root / "dev")
    return root


def run_dev(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a checkout's `./dev` with no more of an environment than it promises to need."""
    return subprocess.run(
        [sys.executable, root / "dev", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": str(root.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def test_set_up_gives_a_kelpie_that_runs_this_checkout(checkout: Path) -> None:
    done = run_dev(checkout, "install")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    launched = subprocess.run(
        [checkout / ".venv" / "bin" / "kelpie"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (launched.returncode, launched.stdout) == (3, "this checkout\n"), launched.stderr


def test_a_set_up_that_was_interrupted_is_made_anew(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text("half a file")
    assert run_dev(checkout, "install").returncode == 0
    (checkout / ".venv" / "kelpie-stamp").unlink()
    (checkout / ".venv" / "bin" / "kelpie").unlink()
    done = run_dev(checkout, "install")
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv" / "bin" / "kelpie").exists()


def test_a_second_run_does_nothing_and_a_changed_pin_is_noticed(checkout: Path) -> None:
    assert "making .venv" in run_dev(checkout, "install").stderr
    assert "making .venv" not in run_dev(checkout, "install").stderr
    (checkout / "requirements" / "dev.txt").write_text("# still nothing\n")
    assert "making .venv" in run_dev(checkout, "install").stderr


def test_two_terminals_at_once_make_one_environment(checkout: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run_dev(checkout, "install"), range(2)))
    assert [done.returncode for done in both] == [0, 0]
    assert sum("making .venv" in done.stderr for done in both) == 1


def test_a_set_up_that_fails_is_not_taken_for_finished(checkout: Path) -> None:
    (checkout / "requirements" / "dev.txt").write_text("click==8.5.1 --hash=sha256:00\n")
    done = run_dev(checkout, "install", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "pip could not install requirements/dev.txt" in done.stderr
    assert not (checkout / ".venv" / "kelpie-stamp").exists()


@pytest.mark.requirement("DEV-TEST-GROUPS")
def test_an_unknown_suite_is_an_error_that_names_the_suites(checkout: Path) -> None:
    done = run_dev(checkout, "test", "nonsense")
    assert done.returncode == 2
    assert "no such suite: nonsense; there are unit" in done.stderr


def test_an_unknown_command_is_an_error_that_names_the_way_out(checkout: Path) -> None:
    done = run_dev(checkout, "dance")
    assert done.returncode == 2
    assert "no such command: dance; ./dev help lists them" in done.stderr
    assert not (checkout / ".venv").exists()


def test_hooks_installs_the_check_and_never_replaces_somebody_elses(checkout: Path) -> None:
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    hook = checkout / ".git" / "hooks" / "pre-commit"
    assert run_dev(checkout, "hooks").returncode == 0
    assert hook.read_text().endswith('/dev" check\n')
    assert os.access(hook, os.X_OK)
    hook.write_text("#!/bin/sh\nexit 0\n")
    assert run_dev(checkout, "hooks").returncode == 1
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"


def test_clean_removes_what_was_made_and_keeps_the_sources(checkout: Path) -> None:
    assert run_dev(checkout, "install").returncode == 0
    assert run_dev(checkout, "clean").returncode == 0
    assert sorted(path.name for path in checkout.iterdir()) == [
        "dev",
        "requirements",
        "src",
        "tests",
    ]
