"""Whether a history could have come from objects that do one thing at a time.

A black box: it looks at calls, answers and times alone. Each object is judged for itself, since
linearizability of each is linearizability of all. The search is Wing and Gong's, with Lowe's
memory of what was tried: the set of operations already placed, and the state they led to.

Never says that a history is fine when it gave up: over its budget the answer is
`Judgement.UNKNOWN`.

Source: Wing, Gong: Testing and Verifying Concurrent Objects (1993); Lowe: Testing for
Linearizability (2017).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, NamedTuple

from kelpie.sim.history import Operation
from kelpie.sim.specifications import Specification

BUDGET_STEPS: Final = 1_000_000
"""How many placements are tried per object before the answer is UNKNOWN; a few seconds' work."""

_NANOSECONDS_PER_MS: Final = 1_000_000


class Judgement(Enum):
    """The verdict of a checker of histories."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """The few operations of one object that contradict each other, whatever else happened.

    Attributes:
        object: Whose operations they are.
        operations: Each of them is needed: without its answer there is an order that explains all.
        others: How many further operations the object had; whether they happened makes no
            difference.
        placed: The longest order that explains some of the operations, with the state it leads to.
        state: That state.
    """

    object: str
    operations: tuple[Operation, ...]
    others: int
    placed: tuple[Operation, ...]
    state: Hashable

    def __str__(self) -> str:
        lines = [f"no order of these operations on {self.object} explains every answer:"]
        lines += [
            f"  {_interval(operation)}  {operation.describe()}" for operation in self.operations
        ]
        if self.others:
            lines.append(f"  ({self.others} more of this object make no difference)")
        order = ", ".join(operation.describe() for operation in self.placed) or "nothing"
        lines.append(f"  furthest explanation: {order}; then the state is {self.state!r}")
        left = [operation for operation in self.operations if operation not in self.placed]
        lines += [f"  which leaves: {operation.describe()}" for operation in left]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearizabilityReport:
    """What a check found.

    Attributes:
        judgement: VIOLATION if any object has one, else UNKNOWN if any is.
        counterexample: For the first object in violation.
        unknown: Objects on which the budget ran out.
        steps: Placements tried.
    """

    judgement: Judgement
    counterexample: Counterexample | None = None
    unknown: tuple[str, ...] = ()
    steps: int = 0


def check_linearizability(
    operations: Iterable[Operation],
    specification: Specification,
    *,
    budget_steps: int = BUDGET_STEPS,
) -> LinearizabilityReport:
    """Return whether every object's operations could have happened one at a time.

    ``budget_steps`` bounds the work per object. Objects are judged in the order of their names.
    """
    assert budget_steps > 0, "without a budget nothing can be judged"
    unknown: list[str] = []
    steps = 0
    for name, part in sorted(partition(operations).items()):
        found = _search(part, specification, budget_steps)
        steps += found.steps
        if found.judgement is Judgement.VIOLATION:
            counterexample = _explain(name, part, specification, budget_steps)
            return LinearizabilityReport(
                judgement=Judgement.VIOLATION,
                counterexample=counterexample,
                unknown=tuple(unknown),
                steps=steps,
            )
        if found.judgement is Judgement.UNKNOWN:
            unknown.append(name)
    judgement = Judgement.UNKNOWN if unknown else Judgement.LINEARIZABLE
    return LinearizabilityReport(judgement=judgement, unknown=tuple(unknown), steps=steps)


def partition(operations: Iterable[Operation]) -> Mapping[str, Sequence[Operation]]:
    """Return the operations by object, each object's in the order of their calls."""
    parts: dict[str, list[Operation]] = {}
    for operation in operations:
        parts.setdefault(operation.object, []).append(operation)
    for part in parts.values():
        part.sort(key=lambda operation: operation.called_ns)
    return parts


# --- the search ---------------------------------------------------------------------------------


class _Found(NamedTuple):
    """How a search ended: the furthest order it placed, as indices, and the state after it."""

    judgement: Judgement
    order: tuple[int, ...]
    state: Hashable
    steps: int


class _Events:
    """The calls and returns of one object as a doubly linked list, in order of time.

    Node ``2 * i`` is the call of operation ``i``, ``2 * i + 1`` its return. Placing an operation
    takes both out; taking the placement back puts them where they were.
    """

    __slots__ = ("_next", "_previous", "head", "operations")

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        # Within one nanosecond calls come before returns: such operations overlap.
        stamps = [(operation.called_ns, 0, 2 * i) for i, operation in enumerate(operations)]
        for i, operation in enumerate(operations):
            if operation.returned_ns is not None:
                stamps.append((operation.returned_ns, 1, 2 * i + 1))
        nodes = [node for _, _, node in sorted(stamps)]
        self.head = 2 * len(operations)
        end = self.head + 1
        self._next = [end] * (end + 1)
        self._previous = [self.head] * (end + 1)
        for left, right in zip([self.head, *nodes], [*nodes, end], strict=True):
            self._next[left] = right
            self._previous[right] = left

    def after(self, node: int) -> int:
        """Return the node behind ``node``."""
        return self._next[node]

    def is_call(self, node: int) -> bool:
        """Return whether ``node`` is a call, not a return or the end of the list."""
        return node % 2 == 0 and node < self.head

    def lift(self, index: int) -> None:
        """Take an operation out of the list."""
        self._take(2 * index)
        if not self.operations[index].is_pending:
            self._take(2 * index + 1)

    def restore(self, index: int) -> None:
        """Put back the operation that was lifted last."""
        if not self.operations[index].is_pending:
            self._put(2 * index + 1)
        self._put(2 * index)

    def _take(self, node: int) -> None:
        before, behind = self._previous[node], self._next[node]
        self._next[before] = behind
        self._previous[behind] = before

    def _put(self, node: int) -> None:
        self._next[self._previous[node]] = node
        self._previous[self._next[node]] = node


class _Placed(NamedTuple):
    """An operation that has its place, and the state before it."""

    member: int
    before: Hashable


def _search(
    operations: Sequence[Operation], specification: Specification, budget_steps: int
) -> _Found:
    """Place operations one after the other until every answered one has its place."""
    events = _Events(operations)
    left = sum(not operation.is_pending for operation in operations)
    state = specification.initial
    placed: list[_Placed] = []
    furthest: tuple[tuple[int, ...], Hashable] = ((), state)
    done = 0
    tried: set[tuple[int, Hashable]] = {(0, state)}
    steps = 0
    node = events.after(events.head)
    while left:
        if events.is_call(node):
            steps += 1
            if steps > budget_steps:
                return _Found(Judgement.UNKNOWN, *furthest, steps)
            index = node // 2
            after = _place(operations[index], specification, state)
            if after is not None and (key := (done | 1 << index, after.state)) not in tried:
                tried.add(key)
                placed.append(_Placed(index, state))
                state, done = after.state, key[0]
                left -= not operations[index].is_pending
                events.lift(index)
                node = events.head
                if len(placed) > len(furthest[0]):
                    furthest = (tuple(each.member for each in placed), state)
            node = events.after(node)
        elif not placed:
            return _Found(Judgement.VIOLATION, *furthest, steps)
        else:
            index, state = placed.pop()
            done &= ~(1 << index)
            left += not operations[index].is_pending
            events.restore(index)
            node = events.after(2 * index)
    order = tuple(each.member for each in placed)
    return _Found(Judgement.LINEARIZABLE, order, state, steps)


class _After(NamedTuple):
    """The state that an operation leads to."""

    state: Hashable


def _place(operation: Operation, specification: Specification, state: Any) -> _After | None:
    """Return the state after ``operation``, or None when it cannot be next."""
    after, result = specification.apply(state, operation.kind, operation.argument)
    if operation.is_pending:
        # Nobody was told, so it matters only if it changes something.
        return None if after == state else _After(after)
    return _After(after) if result == operation.result else None


# --- what to tell people ------------------------------------------------------------------------


def _explain(
    name: str, operations: Sequence[Operation], specification: Specification, budget_steps: int
) -> Counterexample:
    """Return the answers that contradict each other, as few as can be found.

    An answer is dropped by making its operation pending, which allows more orders than before; so
    whatever still contradicts, contradicts in the whole history too.
    """

    def contradicts(candidate: Sequence[Operation]) -> bool:
        return _search(candidate, specification, budget_steps).judgement is Judgement.VIOLATION

    kept = list(operations)
    end_ns = _first_contradiction(kept, contradicts)
    kept = [_forget_after(operation, end_ns) for operation in kept if operation.called_ns <= end_ns]
    for index in reversed(range(len(kept))):
        if not kept[index].is_pending:
            without = [*kept[:index], replace(kept[index], returned_ns=None), *kept[index + 1 :]]
            if contradicts(without):
                kept = without
    # What is pending only adds orders: the rest contradicts itself without it as well.
    answered = [operation for operation in kept if not operation.is_pending]
    found = _search(answered, specification, budget_steps)
    assert found.judgement is Judgement.VIOLATION, "a counterexample contradicts itself"
    return Counterexample(
        object=name,
        operations=tuple(answered),
        others=len(operations) - len(answered),
        placed=tuple(answered[index] for index in found.order),
        state=found.state,
    )


def _first_contradiction(operations: Sequence[Operation], contradicts: Any) -> int:
    """Return the earliest return after which the history so far has no explanation."""
    ends = sorted(each.returned_ns for each in operations if each.returned_ns is not None)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        end_ns = ends[middle]
        so_far = [_forget_after(each, end_ns) for each in operations if each.called_ns <= end_ns]
        if contradicts(so_far):
            high = middle
        else:
            low = middle + 1
    return ends[low]


def _forget_after(operation: Operation, end_ns: int) -> Operation:
    returned_ns = operation.returned_ns
    if returned_ns is not None and returned_ns > end_ns:
        return replace(operation, returned_ns=None)
    return operation


def _interval(operation: Operation) -> str:
    begin = operation.called_ns / _NANOSECONDS_PER_MS
    end = (
        "" if operation.returned_ns is None else f"{operation.returned_ns / _NANOSECONDS_PER_MS:g}"
    )
    return f"[{begin:g} .. {end}] ms"
