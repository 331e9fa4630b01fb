"""A directory with the tutorial's files, and the programs that are run in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import kelpie
from tests.measuring import measuring

SOURCE = str(Path(kelpie.__file__).parents[1])
PAGE = Path(__file__).parents[3] / "docs" / "tutorials" / "simulation.md"
TEST = "test_shop.py:test_an_order_is_paid_once"
PROGRAM_S = 120

_BLOCK = re.compile(r"^```python\n# (.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Desk:
    """A user's empty project, filled from the tutorial."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        blocks = dict(_BLOCK.findall(PAGE.read_text(encoding="utf-8")))
        assert list(blocks) == ["shop.py", "test_shop.py", "shop.py, in place of Till"]
        self.write("shop.py", blocks["shop.py"])
        self.write("test_shop.py", blocks["test_shop.py"])
        self._repaired = blocks["shop.py, in place of Till"]

    def repair(self) -> None:
        """Do what the end of the tutorial says."""
        before, _, _ = (self.directory / "shop.py").read_text().partition("class Till")
        self.write("shop.py", before + self._repaired)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.directory / name).write_text(text, encoding="utf-8")

    def kelpie(
        self, *words: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        return self._run("kelpie.cli", *words, stdin=stdin, **environment)

    def pytest(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run pytest with the plugin, which an installed product brings by itself."""
        plugins = ("-p", "kelpie.sim.plugin", "-p", "no:randomly", "-p", "no:cacheprovider")
        return self._run("pytest", *plugins, *words, **environment)

    def words_of(self, module: str) -> list[str]:
        """Run a module of the project and return the words that it printed."""
        done = self._run(module)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def _run(
        self, module: str, *words: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE, "HOME": str(self.directory)}
            | measuring()
            | environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PROGRAM_S,
        )
