"""Supervised work begins at once where the interpreter can: on 3.12 and later."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kelpie.actors.supervisor import EAGERLY, Supervisor
from kelpie.sim.clock import SimulatedClock
from kelpie.sim.telemetry import RecordedTelemetry

PRESENT = sys.executable if sys.version_info < (3, 12) else ""
SOURCES = Path(__file__).resolve().parents[3] / "src"
# The supervisor's module needs the standard library alone, so a bare interpreter runs it.
PROGRAM = """
import asyncio
import sys
from kelpie.actors.supervisor import EAGERLY, Supervisor

class Ports:
    def __init__(self): self.failed = []
    def count(self, name, amount=1, **labels): pass
    def log(self, level, event, **fields): self.failed.append(fields["task"])
    async def sleep(self, seconds): await asyncio.sleep(0)

async def main():
    ports, story = Ports(), []
    supervisor = Supervisor(clock=ports, telemetry=ports)

    async def work(name, fails):
        story.append(f"{name} begins")
        if fails == "at once": raise ValueError(name)
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        if fails: raise ValueError(name)
        story.append(f"{name} ends")

    short = supervisor.spawn("short", work("short", ""))
    assert story == (["short begins"] if EAGERLY else []), story
    supervisor.spawn("bad", work("bad", "at once"))
    assert ports.failed == (["bad"] if EAGERLY else []), "a failure before the first wait"
    supervisor.spawn("late", work("late", "later"))
    runs = []
    done = asyncio.Event()

    async def stubborn():
        runs.append(1)
        if len(runs) < 3: raise ValueError("again")
        done.set()

    supervisor.keep("kept", stubborn)
    await done.wait()
    await short
    assert "short ends" in story and len(runs) == 3
    stuck = supervisor.spawn("stuck", asyncio.Event().wait())
    await supervisor.close()
    assert stuck.cancelled() and supervisor.task_count == 0
    assert sorted(ports.failed) == ["bad", "kept", "kept", "late"], ports.failed

assert EAGERLY == ({"eager_start": True} if sys.version_info >= (3, 12) else {})
asyncio.run(main())
print("eager" if EAGERLY else "later")
"""


def newer_interpreters() -> list[str]:
    """Every Python from 3.12 on that is found here."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = {shutil.which(f"python3.{minor}") for minor in range(12, 16)}
    found |= {str(path) for path in pyenv.glob("versions/3.1[2-9]*/bin/python")}
    probe = "import sys; sys.exit(sys.version_info < (3, 12))"
    return [
        name
        for name in sorted(filter(None, found))
        if subprocess.run([name, "-c", probe], check=False, capture_output=True).returncode == 0
    ]


@pytest.mark.requirement("ACTOR-EAGER")
@pytest.mark.parametrize("interpreter", sorted({sys.executable, *newer_interpreters()}))
def test_supervised_work_is_the_same_with_eager_tasks_and_without(interpreter: str) -> None:
    done = subprocess.run(
        [interpreter, "-B", "-W", "error", "-c", PROGRAM],
        env={"PYTHONPATH": str(SOURCES)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("later\n" if interpreter == PRESENT else "eager\n")


@pytest.mark.requirement("ACTOR-EAGER")
async def test_work_begins_at_the_loops_next_round_where_tasks_cannot_be_eager() -> None:
    supervisor = Supervisor(clock=SimulatedClock(), telemetry=RecordedTelemetry())
    story: list[str] = []

    async def work() -> None:
        story.append("begins")

    task = supervisor.spawn("work", work())
    assert task is not None
    assert story == (["begins"] if sys.version_info >= (3, 12) else [])
    assert bool(EAGERLY) == (sys.version_info >= (3, 12))
    await asyncio.wait([task])
    assert story == ["begins"]
    await supervisor.close()
