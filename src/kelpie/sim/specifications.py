"""Sequential specifications: what an object answers when it is asked one thing at a time.

Pure. States are hashable values, so that a checker can remember where it was. An operation that a
specification does not know is a mistake in the test, and raises.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol


class Answered(NamedTuple):
    """The state after an operation, and what it answers."""

    state: Hashable
    result: Any


class Specification(Protocol):
    """What checkers need to know of an object."""

    @property
    def initial(self) -> Hashable:
        """The state of an object that nobody has touched."""
        ...

    @property
    def reads(self) -> frozenset[str]:
        """The operations that never change anything, in whatever state."""
        ...

    def apply(self, state: Any, kind: str, argument: Any) -> Answered:
        """Return what one operation does and answers; deterministic and total.

        Raises:
            ValueError: The object has no operation ``kind``.
        """
        ...


class RegisterSpecification:
    """One value: ``read``, ``write(value)``, ``cas((expected, value))`` answering if it did."""

    initial: Hashable = None
    reads: frozenset[str] = frozenset({"read"})

    def apply(self, state: Any, kind: str, argument: Any) -> Answered:
        """Return the value after ``kind``, and its answer."""
        match kind:
            case "read":
                return Answered(state, state)
            case "write":
                return Answered(argument, None)
            case "cas":
                expected, value = argument
                did = state == expected
                return Answered(value if did else state, did)
            case _:
                raise _unknown(kind, "a register")


class CounterSpecification:
    """A number from 0: ``get``, and ``add(amount)`` answering the new number."""

    initial: Hashable = 0
    reads: frozenset[str] = frozenset({"get"})

    def apply(self, state: Any, kind: str, argument: Any) -> Answered:
        """Return the number after ``kind``, and its answer."""
        match kind:
            case "get":
                return Answered(state, state)
            case "add":
                return Answered(state + argument, state + argument)
            case _:
                raise _unknown(kind, "a counter")


class MapSpecification:
    """Keys with values; None stands for no value.

    ``get(key)``, ``put((key, value))``, ``delete(key)``, ``keys``, and
    ``cas((key, expected, value))``, which answers whether it did.
    """

    initial: Hashable = ()
    reads: frozenset[str] = frozenset({"get", "keys"})

    def apply(self, state: Any, kind: str, argument: Any) -> Answered:
        """Return the pairs after ``kind``, and its answer."""
        pairs = dict(state)
        match kind:
            case "keys":
                return Answered(state, tuple(sorted(pairs)))
            case "get":
                return Answered(state, pairs.get(argument))
            case "put":
                key, value = argument
                return Answered(_with(pairs, key, value), None)
            case "delete":
                return Answered(_with(pairs, argument, None), None)
            case "cas":
                key, expected, value = argument
                did = pairs.get(key) == expected
                return Answered(_with(pairs, key, value) if did else state, did)
            case _:
                raise _unknown(kind, "a map")


class OnceSpecification:
    """A counter whose changes carry a key: ``get``, and ``add((key, amount))``.

    The first ``add`` of a key answers the new number; every later one of that key changes nothing
    and answers the same again.
    """

    initial: Hashable = (0, ())
    reads: frozenset[str] = frozenset({"get"})

    def apply(self, state: Any, kind: str, argument: Any) -> Answered:
        """Return the number and the kept answers after ``kind``, and its answer."""
        total, kept = state
        match kind:
            case "get":
                return Answered(state, total)
            case "add":
                key, amount = argument
                answers = dict(kept)
                if key in answers:
                    return Answered(state, answers[key])
                return Answered(
                    (total + amount, _with(answers, key, total + amount)), total + amount
                )
            case _:
                raise _unknown(kind, "a counter with keys")


def _with(pairs: dict[Any, Any], key: Any, value: Any) -> tuple[tuple[Any, Any], ...]:
    changed = {**pairs, key: value}
    return tuple(sorted((name, each) for name, each in changed.items() if each is not None))


def _unknown(kind: str, what: str) -> ValueError:
    return ValueError(f"{what} has no operation {kind!r}")
