"""Runs one scenario under one seed, and reports.

Invariants: a run leaves nothing behind, neither files nor a changed interpreter; the same scenario,
seed and configuration give the same trace hash, in any process on this machine.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

from kelpie.ports.faults import faults_from
from kelpie.sim.escape import sealed
from kelpie.sim.faults.plan import Injection
from kelpie.sim.loop import SimulatedLoop, StalledSimulationError, attempt
from kelpie.sim.rng import stream
from kelpie.sim.schedule import (
    ChoiceTape,
    RecordingScheduler,
    ReplayScheduler,
    make_scheduler,
)
from kelpie.sim.swarm import RunConfig
from kelpie.sim.trace import Trace
from kelpie.sim.view import Violation
from kelpie.sim.world import SimulatedWorld

MEMORY_DISK: Final = Path("/dev/shm")  # noqa: S108  the directory below it is our user's alone


class Scenario(Protocol):
    """What happens in a run: a workload, then healing, then what must hold at the end.

    One instance serves one run.
    """

    @property
    def name(self) -> str:
        """Its stable name."""
        ...

    async def run(self, world: SimulatedWorld) -> None:
        """Live through it.

        Raises:
            AssertionError: What must hold does not.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What one run came to.

    Attributes:
        steps: How many callbacks ran; ``program_steps`` of them, roughly, in programs.
        violation: What went wrong first; None if nothing did.
        injected: How often each fault happened.
        injections: Every fault that happened, in order: a script for a later run.
        reached: How often each `sometimes` held.
        tape: What the scheduler chose.
        lines: The trace, if it was kept.
    """

    scenario: str
    seed: int
    config: RunConfig
    steps: int
    program_steps: int
    virtual_s: float
    commits: int
    trace_hash: str
    violation: Violation | None
    injected: dict[str, int]
    injections: tuple[Injection, ...] = field(repr=False)
    reached: dict[str, int]
    tape: ChoiceTape = field(repr=False)
    lines: list[str] = field(repr=False)

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""
        return self.violation is None


def run(
    scenario: Scenario,
    seed: int,
    config: RunConfig | None = None,
    *,
    tape: ChoiceTape | None = None,
    script: Iterable[Injection] | None = None,
    keep_trace: bool = False,
    watch: Callable[[SimulatedWorld], None] | None = None,
) -> RunReport:
    """Live through ``scenario`` under ``seed`` and report.

    Args:
        scenario: What happens.
        seed: Where everything that is drawn comes from.
        config: How the run is made; what the seed draws when None.
        tape: Replays the scheduler's choices instead of drawing them.
        script: If given, exactly these faults happen, whatever the rules say.
        keep_trace: Whether the report carries every line of the trace.
        watch: Given the world before anything happens, to look at what became of it afterwards.
    """
    config = config or RunConfig.draw(seed, scenario.name)
    recorded = ChoiceTape()
    scheduler = make_scheduler(config.scheduler, stream(seed, "schedule"), depth=config.depth)
    if tape is not None:
        scheduler = ReplayScheduler(tape)
    loop = SimulatedLoop(scheduler=RecordingScheduler(scheduler, recorded))
    trace = Trace(keep=keep_trace)
    with run_directory(f"{scenario.name}-{seed}") as directory, _calm_collector():
        world = SimulatedWorld(
            seed=seed,
            config=config,
            directory=directory,
            loop=loop,
            trace=trace,
            script=script,
        )
        if watch is not None:
            watch(world)
        with sealed(), faults_from(world.plan):
            try:
                _live(scenario, world)
            finally:
                world.close()
    for injection in world.plan.log:
        trace.note("fault", " ".join(map(str, injection)))
    return RunReport(
        scenario=scenario.name,
        seed=seed,
        config=config,
        steps=loop.steps,
        program_steps=world.chaos.program_steps,
        virtual_s=loop.now_ns / 1e9,
        commits=world.view.commits,
        trace_hash=trace.digest(),
        violation=world.violation,
        injected=dict(world.plan.injected),
        injections=tuple(world.plan.log),
        reached=dict(world.reached),
        tape=recorded,
        lines=trace.lines,
    )


def _live(scenario: Scenario, world: SimulatedWorld) -> None:
    try:
        failure = world.loop.run_until_complete(attempt(scenario.run(world)))
    except StalledSimulationError as error:
        world.fail("progress", str(error))
        return
    except RuntimeError:
        # A violation stops the loop, which says so with this error.
        assert world.violation is not None, "the loop stops for a violation alone"
        return
    if failure is not None:
        world.fail("scenario", _explain(failure))
        return
    world.view.is_over = True
    world.check()


def _explain(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return _explain(group.exceptions[0])
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}: {error}"


@contextmanager
def run_directory(name: str) -> Generator[Path]:
    """Yield an empty directory whose path depends on ``name`` alone, and remove it at the end.

    Paths are part of what the product stores, so a run that is repeated needs the same. Whoever
    wants the same run at the same time waits.
    """
    base = MEMORY_DISK if MEMORY_DISK.is_dir() else Path(tempfile.gettempdir())
    root = base / f"kelpie-sim-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    assert root.stat().st_uid == os.getuid(), f"{root} belongs to somebody else"
    directory = root / name
    lock = _lock(root / f"{name}.lock")
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        yield directory
        shutil.rmtree(directory)
        (root / f"{name}.lock").unlink()
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    """Return the descriptor of the locked file at ``path``, which may be removed meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextmanager
def _calm_collector() -> Generator[None]:
    """Let the garbage collector run between runs alone, so that no finaliser runs by chance."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
