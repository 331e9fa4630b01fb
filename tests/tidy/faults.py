"""Rules about faults: each built one has its place, each place a fault of the catalogue."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from tests.tidy.shapes import called_name
from tests.tidy.tree import Module, Offence, imported_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kelpie.sim.faults.catalogue import FaultKind

PORT = "kelpie.ports.faults"
INSTALL = f"{PORT}.faults_from"
PLAN = "kelpie.sim.faults.plan"
# How code asks for a fault, or says that one happened, by who does so.
CALLS = {"fault": "product", "fires": "world"}


class Site(NamedTuple):
    """Where a fault is injected; ``name`` is empty if it is no literal."""

    name: str
    place: str
    path: str


def find_sites(modules: Iterable[Module]) -> Iterator[Site]:
    """The places of faults: in the simulator ports ask a plan, elsewhere code asks the port."""
    for module in modules:
        if module.name in {PORT, PLAN}:
            continue
        for node in ast.walk(module.tree):
            place = CALLS.get(called_name(node))
            if place is None or (place == "product") == (module.room == "sim"):
                continue
            assert isinstance(node, ast.Call)
            match node.args:
                case [ast.Constant(value=str() as name)]:
                    yield Site(name, place, module.path)
                case _:
                    yield Site("", place, module.path)


def find_misplaced_faults(
    modules: Iterable[Module], kinds: Iterable[FaultKind]
) -> Iterator[Offence]:
    """Built faults that nobody injects, and places whose fault is unknown, due, or another's."""
    by_name = {kind.name: kind for kind in kinds}
    seen: set[str] = set()
    for site in find_sites(modules):
        kind = by_name.get(site.name)
        if kind is None:
            yield Offence(f"{site.path}:{site.name}", "is not in the catalogue of faults")
        elif kind.place != site.place:
            place = kind.place or f"due with {kind.due}"
            yield Offence(f"{site.path}:{site.name}", f"is {place}, injected by the {site.place}")
        else:
            seen.add(site.name)
    for name, kind in by_name.items():
        if kind.is_built and name not in seen:
            yield Offence(name, f"is built, and no {kind.place} injects it")


def find_foreign_sources(modules: Iterable[Module]) -> Iterator[Offence]:
    """Modules outside the simulator that install a source of faults."""
    for module in modules:
        if INSTALL in imported_names(module) and module.room != "sim":
            yield Offence(module.path, "only the simulator makes faults happen")
