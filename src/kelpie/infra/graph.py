"""What must be done before what.

Pure. A unit comes after what it depends on and after the directory it lies in; among deletions
both turn round, so that a directory goes after everything in it. The order is a function of the
vertices alone, whatever order they are given in.
"""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

from kelpie.infra.paths import list_ancestors


class Vertex(NamedTuple):
    """One unit as the order sees it; ``present`` is what it should become."""

    unit_id: str
    path: str
    is_directory: bool
    is_present: bool
    depends_on: tuple[str, ...]


class UnitOrder(NamedTuple):
    """Unit ids in an order that respects ``before``: for each id, what must be done first."""

    unit_ids: tuple[str, ...]
    before: dict[str, tuple[str, ...]]


class CycleFoundError(Exception):
    """Units wait for each other; ``unit_ids`` starts and ends with the same one."""

    def __init__(self, unit_ids: tuple[str, ...]) -> None:
        super().__init__(" -> ".join(unit_ids))
        self.unit_ids = unit_ids


def order_units(vertices: Iterable[Vertex]) -> UnitOrder:
    """Return a deterministic topological order.

    Raises:
        CycleFoundError: There is none.
    """
    by_id = {vertex.unit_id: vertex for vertex in vertices}
    before: dict[str, set[str]] = {unit_id: set() for unit_id in by_id}
    for vertex in by_id.values():
        for dependency in vertex.depends_on:
            _add_edge(before, vertex, by_id[dependency])
    _add_containment(before, by_id)
    sorter = TopologicalSorter({unit_id: sorted(before[unit_id]) for unit_id in sorted(before)})
    try:
        sorter.prepare()
    except CycleError as error:
        raise CycleFoundError(tuple(reversed(error.args[1]))) from error
    ordered: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        ordered.extend(ready)
        sorter.done(*ready)
    assert len(ordered) == len(by_id), "every unit has a place in the order"
    return UnitOrder(
        tuple(ordered), {unit_id: tuple(sorted(edges)) for unit_id, edges in before.items()}
    )


def _add_edge(before: dict[str, set[str]], later: Vertex, earlier: Vertex) -> None:
    if not later.is_present and not earlier.is_present:
        later, earlier = earlier, later
    before[later.unit_id].add(earlier.unit_id)


def _add_containment(before: dict[str, set[str]], by_id: dict[str, Vertex]) -> None:
    directories = {vertex.path: vertex for vertex in by_id.values() if vertex.is_directory}
    for vertex in by_id.values():
        parents = (directories[path] for path in list_ancestors(vertex.path) if path in directories)
        parent = next(parents, None)
        if parent is not None and parent.is_present == vertex.is_present:
            _add_edge(before, vertex, parent)
