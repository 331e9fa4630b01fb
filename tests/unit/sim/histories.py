"""Random small histories, and a judge of them that tries every order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kelpie.sim.history import Operation
from kelpie.sim.specifications import (
    CounterSpecification,
    MapSpecification,
    OnceSpecification,
    RegisterSpecification,
    Specification,
)


class Subject(NamedTuple):
    """A specification, how to draw one of its operations, and an answer that may be wrong."""

    name: str
    specification: Specification
    draw: Callable[[random.Random], tuple[str, Any]]
    lie: Callable[[random.Random, Any], Any]


def _draw_register(chance: random.Random) -> tuple[str, Any]:
    value = chance.randrange(3)
    return chance.choice(
        [("read", None), ("write", value), ("cas", (chance.randrange(3), value)), ("read", None)]
    )


def _draw_counter(chance: random.Random) -> tuple[str, Any]:
    return chance.choice([("get", None), ("add", 1), ("add", 2)])


def _draw_map(chance: random.Random) -> tuple[str, Any]:
    key = chance.choice("ab")
    value = chance.randrange(1, 3)
    kinds: list[tuple[str, Any]] = [
        ("get", key),
        ("put", (key, value)),
        ("delete", key),
        ("cas", (key, chance.choice([None, 1, 2]), value)),
        ("keys", None),
    ]
    return chance.choice(kinds)


def _draw_once(chance: random.Random) -> tuple[str, Any]:
    return chance.choice([("get", None), ("add", (chance.choice("kl"), 1))])


def _lie(chance: random.Random, result: Any) -> Any:
    if isinstance(result, bool):
        return not result
    if isinstance(result, int):
        return result + chance.choice([-1, 1])
    return chance.choice([None, 1])


SUBJECTS = (
    Subject("register", RegisterSpecification(), _draw_register, _lie),
    Subject("counter", CounterSpecification(), _draw_counter, _lie),
    Subject("map", MapSpecification(), _draw_map, _lie),
    Subject("once", OnceSpecification(), _draw_once, _lie),
)


def draw_history(subject: Subject, seed: int, *, count: int, lies: float) -> list[Operation]:
    """Draw operations that ran one at a time, each at a moment within its own interval.

    With probability ``lies`` an answer is changed; some operations stay pending, and of these some
    never happened.
    """
    chance = random.Random(f"{subject.name}/{seed}")
    state: Any = subject.specification.initial
    operations = []
    version = 0
    for number in range(count):
        moment_ns = 10 * (number + 1)
        kind, argument = subject.draw(chance)
        is_pending = chance.random() < 0.2
        seen = None
        result = None
        if not (is_pending and chance.random() < 0.5):
            before = state
            state, result = subject.specification.apply(state, kind, argument)
            version += state != before
            seen = version
        if not is_pending and chance.random() < lies:
            result = subject.lie(chance, result)
        operations.append(
            Operation(
                client=f"c{number}",
                object="x",
                kind=kind,
                argument=argument,
                result=result,
                called_ns=moment_ns - chance.randrange(1, 40),
                returned_ns=None if is_pending else moment_ns + chance.randrange(1, 40),
                version=seen,
            )
        )
    return sorted(operations, key=lambda operation: operation.called_ns)


def is_linearizable(operations: Sequence[Operation], specification: Specification) -> bool:
    """Try every subset of the pending operations, in every order that real time allows."""
    answered = [operation for operation in operations if not operation.is_pending]
    pending = [operation for operation in operations if operation.is_pending]
    return any(
        _explains(order, specification)
        for size in range(len(pending) + 1)
        for happened in itertools.combinations(pending, size)
        for order in itertools.permutations([*answered, *happened])
    )


def _explains(order: Sequence[Operation], specification: Specification) -> bool:
    state: Any = specification.initial
    for place, operation in enumerate(order):
        for later in order[place + 1 :]:
            if later.returned_ns is not None and later.returned_ns < operation.called_ns:
                return False
        state, result = specification.apply(state, operation.kind, operation.argument)
        if not operation.is_pending and result != operation.result:
            return False
    return True
