"""The tutorial's code runs as it is printed, does what the text says, and type-checks."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from kelpie import Runtime
from kelpie.core.errors import ActorFailedError
from tests.integration.actors.simulated import World, simulate
from tests.tidy.tree import ROOT

PAGE = ROOT / "docs" / "tutorials" / "actors.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.requirement("ACTOR-TUTORIAL")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The page's pieces in one file, in order."""
    pieces = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(pieces) >= 6
    path = tmp_path / "tutorial.py"
    path.write_text("\n\n".join(pieces), encoding="utf-8")
    return path


@pytest.fixture
def tutorial(file: Path) -> ModuleType:
    """The program, imported."""
    found = importlib.util.spec_from_file_location("tutorial", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["tutorial"] = module  # annotations are looked up in the module of a class
    found.loader.exec_module(module)
    return module


def test_the_first_program_counts_on_where_it_was(file: Path) -> None:
    run = "import asyncio, tutorial; asyncio.run(tutorial.main())"
    for said in ("1\n", "2\n"):
        done = subprocess.run(
            [sys.executable, "-c", run],
            cwd=file.parent,
            env={"PYTHONPATH": f"{ROOT / 'src'}:{file.parent}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == (said, 0), done.stderr


def test_turns_messages_timers_and_hooks_do_what_the_text_says(
    tmp_path: Path, tutorial: ModuleType
) -> None:
    kinds = [getattr(tutorial, name) for name in ("Purse", "Account", "Diary", "Cached")]

    async def use(runtime: Runtime, world: World) -> None:
        purse = runtime.ref(tutorial.Purse, "mine")
        await purse.add(5)
        with pytest.raises(ActorFailedError, match="not enough"):
            await purse.spend(6)
        assert await purse.spend(5) == 0
        assert await tutorial.hand_in(runtime) == 500
        ada = runtime.ref(tutorial.Account, "ada")
        await ada.receive(250)
        await ada.transfer("ben", 100)
        await world.clock.sleep(1)
        assert await runtime.ref(tutorial.Account, "ben").balance() == 100
        assert await ada.is_richer_than("ben")
        diary = runtime.ref(tutorial.Diary, "2026")
        await diary.open(5_000)
        for text in ("one", "two", "three"):
            await diary.write(text)
        assert await diary.read(1) == ["two", "three"]
        event = await tutorial.hear(runtime, diary)
        assert (event.kind, event.read(int)) == ("diary.closed", 3)
        assert await runtime.ref(tutorial.Cached, "a").square(7) == 49

    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, *kinds) as runtime:
            await use(runtime, world)
        async with world.opened(tmp_path, tutorial.NewAccount) as runtime:
            assert await runtime.ref(tutorial.NewAccount, "ada").shown() == "1.50 EUR"

    simulate(main)


@pytest.mark.timeout(120)
def test_the_tutorials_code_type_checks_strictly(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(file.parent), str(file)],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
