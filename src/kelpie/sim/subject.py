"""What a run is about: a scenario that ships, or a user's, and which faults it is to live through.

A user's scenario is an ``async def`` that takes the world, a class with `run`, or a test that
`kelpie.sim.testing.simulate` decorates; the same name and the same seed give the same run, whoever
asks for it.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from kelpie.core.errors import InvalidFieldError
from kelpie.sim.clock import NANOSECONDS_PER_SECOND
from kelpie.sim.faults.catalogue import CATALOGUE, FaultKind, built
from kelpie.sim.faults.plan import draw_rules
from kelpie.sim.run import Scenario
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.swarm import DURATION_S, RunConfig
from kelpie.sim.world import SimulatedWorld

SWARM: Final = "swarm"
NONE: Final = "none"
SIMULATED: Final = "__kelpie_simulated__"
"""The attribute under which a decorated test keeps the function that was decorated."""

Workload = Callable[..., Awaitable[None]]
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class Subject(NamedTuple):
    """Something that can be run under a seed.

    Attributes:
        name: Its stable name, part of what a seed draws.
        address: How a command line finds it again.
        make: Makes a fresh scenario for one run.
        ships: Whether it is one of the product's own, which heal whatever a fault damages.
    """

    name: str
    address: str
    make: Callable[[], Scenario]
    ships: bool


@dataclass(frozen=True, slots=True)
class WorkloadScenario:
    """A scenario that is one function of the world; ``extra`` are its other arguments."""

    name: str
    work: Workload
    extra: dict[str, Any]

    async def run(self, world: SimulatedWorld) -> None:
        """Live through it."""
        await self.work(world=world, **self.extra)


def subject_of(work: Workload, *, address: str = "", **extra: Any) -> Subject:
    """Return a user's function as a subject; its other arguments are ``extra``."""
    name = _UNSAFE.sub("-", work.__qualname__.replace("<locals>", ""))
    return Subject(name, address, lambda: WorkloadScenario(name, work, extra), ships=False)


def find_subject(address: str) -> Subject:
    """Return the scenario of a name, or of ``file.py:name``.

    Raises:
        InvalidFieldError: There is none, or it cannot be loaded.
    """
    path, separator, name = address.rpartition(":")
    if separator:
        return _subject_in(Path(path), name, address)
    if address not in SCENARIOS:
        known = ", ".join(sorted(SCENARIOS))
        text = f"there is no {address[:64]!r}; there are {known}, and file.py:scenario"
        raise InvalidFieldError("scenario", text)
    return Subject(address, address, SCENARIOS[address], ships=True)


def _subject_in(path: Path, name: str, address: str) -> Subject:
    if not path.is_file():
        raise InvalidFieldError("scenario", f"there is no file {path}")
    found = getattr(_load(path), name, None)
    if found is None:
        raise InvalidFieldError("scenario", f"{path} has no {name}")
    found = getattr(found, SIMULATED, found)
    if inspect.isclass(found):
        made = cast("Callable[[], Scenario]", found)
        return Subject(made().name, address, made, ships=False)
    if not inspect.iscoroutinefunction(found) or _needed(found) != ["world"]:
        text = f"{name} of {path} is no async def that takes a world alone, and no scenario class"
        raise InvalidFieldError("scenario", text)
    return subject_of(found, address=address)


def _needed(work: Workload) -> list[str]:
    return [
        each.name
        for each in inspect.signature(work).parameters.values()
        if each.default is inspect.Parameter.empty
    ]


def _load(path: Path) -> Any:
    """Return the module of a file; it may import its neighbours, as a script may."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidFieldError("scenario", f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        text = f"{path} cannot be loaded: {type(error).__name__}: {error}"
        raise InvalidFieldError("scenario", text) from error
    finally:
        sys.path.pop(0)
    return module


def configure(subject: Subject, seed: int, faults: str = SWARM) -> RunConfig:
    """Return how ``subject`` runs under ``seed``.

    Args:
        subject: What runs.
        seed: Draws everything that ``faults`` leaves open.
        faults: ``swarm`` (each seed its own subset; one in ten none), ``none``, or names and groups
            of the catalogue with commas between them: then exactly these may happen.

    Raises:
        InvalidFieldError: A name is in no catalogue, or its fault cannot happen yet.
    """
    if faults == SWARM:
        return RunConfig.draw(seed, subject.name, kinds=None if subject.ships else _harmless())
    drawn = RunConfig.draw(seed, subject.name, kinds=())
    if faults == NONE:
        return drawn
    kinds = [kind for name in faults.split(",") for kind in find_kinds(name.strip())]
    duration_ns = int(DURATION_S * NANOSECONDS_PER_SECOND)
    rules = draw_rules(seed, duration_ns=duration_ns, kinds=dict.fromkeys(kinds), chance=1.0)
    return replace(drawn, rules=rules)


def require_faults(faults: str) -> None:
    """Refuse a choice of faults that `configure` could not follow.

    Raises:
        InvalidFieldError: It could not.
    """
    if faults not in {SWARM, NONE}:
        for name in faults.split(","):
            find_kinds(name.strip())


def find_kinds(name: str) -> list[FaultKind]:
    """Return the built fault of this name, or those of this group.

    Raises:
        InvalidFieldError: There is none.
    """
    kind = CATALOGUE.get(name)
    if kind is not None and kind.is_built:
        return [kind]
    group = [each for each in built() if each.group == name]
    if group:
        return group
    if kind is not None:
        raise InvalidFieldError("faults", f"{name} is due with {kind.due}")
    groups = ", ".join(sorted({each.group for each in built()}))
    text = f"{name[:64]!r} is no fault of the catalogue and no group ({groups})"
    raise InvalidFieldError("faults", text)


def _harmless() -> list[FaultKind]:
    """Return what a user's program has to live through: everything but damage to its disk."""
    return [kind for kind in built() if not kind.damages]
