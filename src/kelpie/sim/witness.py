"""Whether a history is what the commits say it was.

Every operation knows the version of its object that it committed as, or that it read. Versions are
then the order that `linearizability` would have to search for, and one pass decides: in the order
of versions every answer must follow from the one before, and no operation may lie before another
that had returned when it was called.

An object's versions count from 1, one for each committed turn. A deleted and re-created actor is
another object: put its incarnation into the name. An operation that was meant to change something
and committed nothing (a repeated key, a failed comparison) may carry the version that it saw.

Never guesses: a version that no operation accounts for makes the object's later answers UNKNOWN,
unless it is plainly a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from kelpie.sim.history import Operation
from kelpie.sim.linearizability import Judgement, partition
from kelpie.sim.specifications import Specification


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessReport:
    """What a check found.

    Attributes:
        judgement: VIOLATION if any object has one, else UNKNOWN if any is.
        problem: What is wrong, for people; empty unless VIOLATION.
        operations: The operations that the problem is about.
        unknown: Objects with versions that nothing accounts for.
    """

    judgement: Judgement
    problem: str = ""
    operations: tuple[Operation, ...] = ()
    unknown: tuple[str, ...] = ()


class _Problem(NamedTuple):
    text: str
    operations: tuple[Operation, ...] = ()


class _Accounted(NamedTuple):
    """An object's versioned operations by version, and whether its answers can be followed."""

    by_version: Sequence[Operation]
    is_complete: bool


def check_versions(
    operations: Iterable[Operation],
    specification: Specification,
    *,
    commits: Mapping[str, Sequence[int]] | None = None,
) -> WitnessReport:
    """Return whether answers, versions and real time agree, in time that grows as n log n.

    Args:
        operations: A history; pending operations without a version count as unknown.
        specification: What each object answers.
        commits: By object, the versions that the store took, in its order. Without it, the
            versions of the operations must have no gap that pending operations do not explain.
    """
    unknown: list[str] = []
    parts = partition(operations)
    for name in sorted({*parts, *(commits or ())}):
        part = parts.get(name, ())
        stored = None if commits is None else commits.get(name, ())
        found = _check_object(name, part, specification, stored)
        if isinstance(found, _Problem):
            return WitnessReport(
                judgement=Judgement.VIOLATION,
                problem=found.text,
                operations=found.operations,
                unknown=tuple(unknown),
            )
        if not found:
            unknown.append(name)
    judgement = Judgement.UNKNOWN if unknown else Judgement.LINEARIZABLE
    return WitnessReport(judgement=judgement, unknown=tuple(unknown))


def _check_object(
    name: str,
    operations: Sequence[Operation],
    specification: Specification,
    stored: Sequence[int] | None,
) -> _Problem | bool:
    """Return what is wrong with an object, or whether all of it could be followed."""
    for operation in operations:
        if operation.version is None and not operation.is_pending:
            return _Problem(f"{operation.describe()} has no version", (operation,))
    versioned = [each for each in operations if each.version is not None]
    by_version = sorted(versioned, key=_version)
    problem = _check_order(by_version)
    if problem is not None:
        return problem
    found = _account(name, operations, by_version, specification, stored)
    if isinstance(found, _Problem):
        return found
    problem = _follow(name, found, specification)
    return found.is_complete if problem is None else problem


def _version(operation: Operation) -> int:
    assert operation.version is not None, "only operations with a version are put in order"
    return operation.version


# --- one version for each committed turn --------------------------------------------------------


def _account(
    name: str,
    operations: Sequence[Operation],
    by_version: Sequence[Operation],
    specification: Specification,
    stored: Sequence[int] | None,
) -> _Accounted | _Problem:
    """Return the operations with whether every version is somebody's, or what is wrong."""
    reads = specification.reads
    changes = {_version(each) for each in by_version if each.kind not in reads}
    if stored is None:
        newest = max((_version(each) for each in by_version), default=0)
        missing = [version for version in range(1, newest + 1) if version not in changes]
        unsure = sum(each.is_pending and each.version is None for each in operations)
        if len(missing) > unsure:
            return _Problem(f"version {missing[0]} of {name} is nobody's")
        return _Accounted(by_version, not missing)
    for place, version in enumerate(stored, start=1):
        if version != place:
            return _Problem(f"commit {place} of {name} became version {version}")
    for operation in by_version:
        version = _version(operation)
        is_commit = version > 0 or operation.kind not in reads
        if is_commit and not 1 <= version <= len(stored):
            text = f"{operation.describe()} is of version {version}, which was never committed"
            return _Problem(text, (operation,))
    return _Accounted(by_version, len(changes) == len(stored))


# --- answers in the order of versions -----------------------------------------------------------


def _follow(name: str, accounted: _Accounted, specification: Specification) -> _Problem | None:
    """Compare every answer with what its version must have answered, up to the first gap."""
    state: Any = specification.initial
    reached = 0
    for version, group in groupby(accounted.by_version, key=_version):
        members = list(group)
        if version > 0:
            committer = _find_committer(members, specification, state)
            if committer is None or version != reached + 1:
                return None
            reached = version
            state, problem = _apply(committer, specification, state)
            if problem is not None:
                return problem
            members.remove(committer)
            problem = _check_seen_early(committer, members)
            if problem is not None:
                return problem
        for operation in members:
            after, problem = _apply(operation, specification, state)
            if problem is not None:
                return problem
            if after != state:
                text = f"{operation.describe()} changed version {version} of {name} besides another"
                return _Problem(text, (operation,))
    return None


def _find_committer(
    members: Sequence[Operation], specification: Specification, state: Any
) -> Operation | None:
    """Return the operation that made a version; None when only readers know of it."""
    changes = [each for each in members if each.kind not in specification.reads]
    if len(changes) <= 1:
        return changes[0] if changes else None
    for operation in changes:
        if specification.apply(state, operation.kind, operation.argument).state != state:
            return operation
    return changes[0]


def _check_seen_early(committer: Operation, others: Sequence[Operation]) -> _Problem | None:
    """Return an operation that had seen a version when the one that made it was called."""
    for operation in others:
        ended_ns = operation.returned_ns
        if ended_ns is not None and ended_ns < committer.called_ns:
            text = f"{operation.describe()} saw {committer.describe()} before its call"
            return _Problem(text, (operation, committer))
    return None


def _apply(
    operation: Operation, specification: Specification, state: Any
) -> tuple[Any, _Problem | None]:
    after, result = specification.apply(state, operation.kind, operation.argument)
    if operation.is_pending or result == operation.result:
        return after, None
    text = f"{operation.describe()} at version {operation.version}, where the answer is {result!r}"
    return after, _Problem(text, (operation,))


# --- real time ----------------------------------------------------------------------------------


def _check_order(by_version: Sequence[Operation]) -> _Problem | None:
    """Return the first pair whose versions go against their real-time order, if any."""
    answered = [each for each in by_version if not each.is_pending]
    answered.sort(key=lambda operation: operation.returned_ns or 0)
    newest: Operation | None = None
    place = 0
    for operation in sorted(by_version, key=lambda each: each.called_ns):
        while place < len(answered) and (answered[place].returned_ns or 0) < operation.called_ns:
            if newest is None or _version(answered[place]) > _version(newest):
                newest = answered[place]
            place += 1
        if newest is not None and _version(operation) < _version(newest):
            text = (
                f"{operation.describe()} is of version {operation.version}, but "
                f"{newest.describe()} of version {newest.version} had returned before its call"
            )
            return _Problem(text, (newest, operation))
    return None
