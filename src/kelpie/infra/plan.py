"""The difference between what should be and what is, as data.

`make_plan` is pure: facts in, plan out. A plan names every path it would touch, in an order that
respects dependencies, and its digest covers all of it. Invariants: nothing outside the plan is
touched; an empty plan is what planning again gives once a plan was applied; only paths that an
earlier plan wrote are removed without being named in the configuration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from kelpie.core import limits
from kelpie.core.digests import Digest, digest_bytes, digest_value
from kelpie.core.errors import ConflictError, InvalidFieldError, LimitExceededError
from kelpie.infra.config import Desired, UnitSpec, UnitType
from kelpie.infra.graph import order_units
from kelpie.infra.paths import list_ancestors, require_root
from kelpie.sandbox.protocol import FileChange, FileState

Action = Literal["create", "update", "delete", "none"]

ABSENT: Final = FileState("absent", "", 0, 0)
DIRECTORY_DIGEST: Final = digest_bytes(b"")
"""What ``FileChange.after`` says of a directory that will exist: it has no content of its own."""

_FILE_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755
_KINDS: Final[dict[UnitType, Literal["file", "directory"]]] = {
    "linux.file": "file",
    "linux.dir": "directory",
}


class AppliedUnit(msgspec.Struct, frozen=True, kw_only=True):
    """A path that an apply wrote, and which unit asked for it; ``digest`` is its content's."""

    unit_id: str
    type: UnitType
    path: str
    digest: str


class PlanUnit(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a plan: what it will do, and which units must be done first.

    ``change`` is None exactly when ``action`` is ``none``. ``is_declared`` is false for a path
    that an earlier plan wrote and no unit of the workspace asks for any more.
    """

    unit_id: str
    type: UnitType
    path: str
    action: Action
    change: FileChange | None = None
    depends_on: tuple[str, ...] = ()
    is_declared: bool = True


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an apply would do to one root, bound by ``digest``.

    Attributes:
        root: The absolute directory that all paths are relative to.
        source: The name of the workspace's file, for people.
        revision: The target's revision that the plan was made against.
        units: In an order that respects ``depends_on``.
        forgets: Paths that an earlier plan wrote and that are no longer this target's business.
        digest: Over everything else.
    """

    root: str
    source: str
    revision: int
    units: tuple[PlanUnit, ...]
    forgets: tuple[str, ...] = ()
    digest: Digest = Digest("")
    schema_version: int = 1

    @property
    def has_changes(self) -> bool:
        """Whether applying would change anything outside."""
        return any(unit.change is not None for unit in self.units)

    def count_actions(self) -> dict[Action, int]:
        """Return how many units have each action, zeros included."""
        counts = Counter(unit.action for unit in self.units)
        actions: tuple[Action, ...] = ("create", "update", "delete", "none")
        return {action: counts[action] for action in actions}


def digest_plan(plan: Plan) -> Digest:
    """Return the digest over everything in ``plan`` but its own digest."""
    return digest_value(msgspec.structs.replace(plan, digest=Digest("")))


def list_paths(desired: Desired, previous: Mapping[str, AppliedUnit]) -> tuple[str, ...]:
    """Return every path whose state `make_plan` needs, directories before what is in them."""
    paths = {unit.path for unit in desired.units} | set(previous)
    for path in tuple(paths):
        paths.update(list_ancestors(path))
    return tuple(sorted(paths, key=lambda path: (path.count("/"), path)))


def make_plan(
    *,
    desired: Desired,
    actual: Mapping[str, FileState],
    previous: Mapping[str, AppliedUnit],
    root: str,
    revision: int = 0,
) -> Plan:
    """Return what turns ``actual`` into ``desired``.

    Args:
        desired: What should be.
        actual: The state of every path of `list_paths`.
        previous: What earlier applies wrote, by path.
        root: The target's root, absolute.
        revision: The revision of ``previous``.

    Raises:
        ConflictError: A path is in the way: another kind of file, a link, or no directory.
        LimitExceededError: Too many units, or a plan too large to show and store.
        InvalidFieldError: ``root`` is not an absolute, normal path.
    """
    leftovers, forgets = _find_leftovers(desired, actual, previous)
    units = (*desired.units, *leftovers)
    _require_at_most("plan.units", len(units), limits.PLAN_UNITS_MAX, "units")
    specs = {unit.unit_id: unit for unit in units}
    assert len(specs) == len(units), "ids are unique across the workspace and its leftovers"
    declared = {unit.unit_id for unit in desired.units}
    order = order_units(unit.vertex for unit in units)
    for unit in desired.units:
        _check_way(unit, actual, desired)
    plan = Plan(
        root=require_root(root),
        source=desired.source,
        revision=revision,
        units=tuple(
            _plan_unit(
                specs[unit_id],
                actual[specs[unit_id].path],
                depends_on=order.before[unit_id],
                is_declared=unit_id in declared,
            )
            for unit_id in order.unit_ids
        ),
        forgets=forgets,
    )
    size = len(msgspec.msgpack.encode(plan))
    _require_at_most("plan", size, limits.PLAN_BYTES_MAX, "bytes")
    plan = msgspec.structs.replace(plan, digest=digest_plan(plan))
    check_plan(plan)
    return plan


def _require_at_most(field: str, actual: int, limit: int, unit: str) -> None:
    if actual > limit:
        hint = "split the workspace into several, each with its own root"
        raise LimitExceededError(field, actual=actual, limit=limit, unit=unit, hint=hint)


def _find_leftovers(
    desired: Desired, actual: Mapping[str, FileState], previous: Mapping[str, AppliedUnit]
) -> tuple[tuple[UnitSpec, ...], tuple[str, ...]]:
    """Return the deletions of what nobody asks for any more, and the paths to forget instead."""
    wanted = {unit.path for unit in desired.units if unit.is_present}
    kept = {path for unit_path in wanted for path in list_ancestors(unit_path)}
    taken = {unit.unit_id for unit in desired.units}
    named = {unit.path for unit in desired.units}
    leftovers: list[UnitSpec] = []
    forgets: list[str] = []
    absent = {unit.path for unit in desired.units if actual[unit.path].kind == "absent"}
    forgets.extend(sorted((named - wanted) & absent & set(previous)))
    for path in sorted(set(previous) - named):
        applied = previous[path]
        way = {actual[ancestor].kind for ancestor in list_ancestors(path)}
        if path in kept or way - {"directory"} or actual[path].kind != _KINDS[applied.type]:
            forgets.append(path)
            continue
        unit_id = _free_id(applied.unit_id, taken)
        taken.add(unit_id)
        leftovers.append(UnitSpec(unit_id=unit_id, type=applied.type, path=path, is_present=False))
    return tuple(leftovers), tuple(forgets)


def _free_id(unit_id: str, taken: set[str]) -> str:
    """Return ``unit_id``, or with a suffix that no configuration can use if it is taken."""
    if unit_id not in taken:
        return unit_id
    numbers = range(2, len(taken) + 3)
    return next(name for n in numbers if (name := f"{unit_id}~{n}") not in taken)


def _check_way(unit: UnitSpec, actual: Mapping[str, FileState], desired: Desired) -> None:
    """Refuse a unit whose own path or whose way to it is something else."""
    state = actual[unit.path]
    if state.kind not in {"absent", _KINDS[unit.type]}:
        problem = f"is a {state.kind} on the target, not a {_KINDS[unit.type]}"
        raise _conflict(unit, unit.path, f"{problem}; move it away, then plan again")
    made = {other.path for other in desired.units if other.is_present}
    for path in list_ancestors(unit.path):
        kind = actual[path].kind
        if kind == "absent" and unit.is_present and path not in made:
            advice = "add a linux.dir unit for it, then plan again"
            raise _conflict(unit, path, f"does not exist on the target; {advice}")
        if kind not in {"absent", "directory"}:
            advice = "a unit lies below directories only, never below a link"
            raise _conflict(unit, path, f"is a {kind} on the target; {advice}")


def _conflict(unit: UnitSpec, path: str, problem: str) -> ConflictError:
    return ConflictError(f"unit {unit.unit_id!r}: {path!r} {problem}", unit=unit.unit_id, path=path)


def _plan_unit(
    unit: UnitSpec, state: FileState, *, depends_on: tuple[str, ...], is_declared: bool
) -> PlanUnit:
    change = _plan_change(unit, state)
    action: Action = "none"
    if change is not None:
        action = "update" if unit.is_present else "delete"
        action = "create" if not change.before else action
    return PlanUnit(
        unit_id=unit.unit_id,
        type=unit.type,
        path=unit.path,
        action=action,
        change=change,
        depends_on=depends_on,
        is_declared=is_declared,
    )


def _plan_change(unit: UnitSpec, state: FileState) -> FileChange | None:
    exists = state.kind != "absent"
    assert exists == bool(state.digest), "a digest is empty exactly for an absent path"
    kind = _KINDS[unit.type]
    if not unit.is_present:
        gone = FileChange(path=unit.path, kind=kind, before=state.digest, after="", mode=0)
        return gone if exists else None
    if kind == "directory":
        after = Digest(state.digest) if exists else DIRECTORY_DIGEST
        mode = state.mode if exists else _DIRECTORY_MODE
    else:
        assert unit.content is not None, "a present file has content"
        after = digest_bytes(unit.content)
        mode = state.mode if exists else _FILE_MODE
    mode = mode if unit.mode is None else unit.mode
    if exists and state.digest == after and state.mode == mode:
        return None
    return FileChange(path=unit.path, kind=kind, before=state.digest, after=after, mode=mode)


def check_plan(plan: Plan) -> None:
    """Check a plan that came from elsewhere: its digest, its order, its actions.

    Raises:
        InvalidFieldError: The plan was changed after it was made, or not made by `make_plan`.
    """
    if plan.digest != digest_plan(plan):
        raise InvalidFieldError("plan.digest", "does not match the plan; plan again")
    seen: set[str] = set()
    for unit in plan.units:
        if unit.unit_id in seen or not seen.issuperset(unit.depends_on):
            raise InvalidFieldError("plan.units", f"{unit.unit_id!r} is out of order; plan again")
        is_same = unit.change is None or unit.change.path == unit.path
        if (unit.change is None) != (unit.action == "none") or not is_same:
            problem = f"{unit.unit_id!r} has an action that is not its change; plan again"
            raise InvalidFieldError("plan.units", problem)
        seen.add(unit.unit_id)
