"""What clients asked and were told, as a history that checkers judge.

Owns recording; judges nothing. An operation is an interval: it took effect, if it did, at one
moment between its call and its return. An operation whose outcome nobody was told is *pending*: it
may or may not have happened, at any time after its call.

Invariants: a client has one operation under way; after an unknown outcome it goes on under another
name, so that its pending operation overlaps everything later; stamps grow strictly, so that two
events of one nanosecond keep the order in which they were recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

_NAME_SEPARATOR: Final = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call of one client on one object.

    Attributes:
        client: Who called; a client's operations never overlap.
        object: What was called; operations on different objects are judged apart.
        kind: What it does, a word of the object's specification (``read``, ``add``, ...).
        argument: What it was asked with; hashable.
        result: What the client was told; means nothing while pending.
        called_ns: When it was called.
        returned_ns: When the client was told, None while pending; greater than ``called_ns``.
        version: The object's version that a change committed as, or that a read saw, if known.
    """

    client: str
    object: str
    kind: str
    argument: Any = None
    result: Any = None
    called_ns: int
    returned_ns: int | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        if self.returned_ns is not None and self.returned_ns <= self.called_ns:
            problem = f"returned at {self.returned_ns} ns, not after its call at {self.called_ns}"
            raise ValueError(f"{self.describe()} {problem}")

    @property
    def is_pending(self) -> bool:
        """Whether nobody knows if it happened."""
        return self.returned_ns is None

    def describe(self) -> str:
        """Return the operation for people: ``ann: account.add(5) -> 12``."""
        argument = "" if self.argument is None else repr(self.argument)
        end = "?" if self.is_pending else repr(self.result)
        return f"{self.client}: {self.object}.{self.kind}({argument}) -> {end}"


class History:
    """Records the operations of one run."""

    def __init__(self) -> None:
        self._operations: dict[int, Operation] = {}
        self._open: dict[str, int] = {}
        self._lives: dict[str, int] = {}
        self._stamp_ns = -1
        self._token = 0

    def __len__(self) -> int:
        """Return how many operations are recorded, pending ones included."""
        return len(self._operations)

    def call(self, client: str, name: str, kind: str, argument: Any = None, *, at_ns: int) -> int:
        """Record that ``client`` calls the object ``name``; return the operation's token."""
        assert client not in self._open, f"{client} has an operation under way"
        life = self._lives.get(client, 0)
        caller = f"{client}{_NAME_SEPARATOR}{life}" if life else client
        self._token += 1
        self._operations[self._token] = Operation(
            client=caller,
            object=name,
            kind=kind,
            argument=argument,
            called_ns=self._stamp(at_ns),
        )
        self._open[client] = self._token
        assert self._operations[self._token].is_pending, "a call has no outcome yet"
        return self._token

    def returned(
        self, token: int, result: Any = None, *, at_ns: int, version: int | None = None
    ) -> None:
        """Record what the client was told; its next call may follow."""
        operation = self._end(token)
        assert operation.is_pending, "a client is told once"
        self._operations[token] = replace(
            operation, result=result, returned_ns=self._stamp(at_ns), version=version
        )
        assert not self._operations[token].is_pending, "an answered operation is over"

    def refused(self, token: int) -> None:
        """Take back an operation that is known not to have happened."""
        assert self._end(token).is_pending, "what was answered has happened"
        del self._operations[token]
        assert token not in self._operations, "what did not happen is not judged"

    def lost(self, token: int, *, version: int | None = None) -> None:
        """Leave an operation pending; ``version`` when it is known to have committed after all."""
        client = self._client_of(token)
        operation = self._end(token)
        self._operations[token] = replace(operation, version=version)
        self._lives[client] = self._lives.get(client, 0) + 1
        assert self._operations[token].is_pending, "nobody was told"

    def operations(self) -> Sequence[Operation]:
        """Return all operations in the order of their calls; what is still open is pending."""
        return tuple(self._operations.values())

    def check_invariants(self) -> None:
        """Assert what holds between two events."""
        stamps = [operation.called_ns for operation in self._operations.values()]
        assert stamps == sorted(set(stamps)), "calls are stamped in order, each apart"
        assert all(self._operations[token].is_pending for token in self._open.values())

    def _client_of(self, token: int) -> str:
        found = [client for client, current in self._open.items() if current == token]
        assert len(found) == 1, f"operation {token} is not under way"
        return found[0]

    def _end(self, token: int) -> Operation:
        del self._open[self._client_of(token)]
        return self._operations[token]

    def _stamp(self, at_ns: int) -> int:
        self._stamp_ns = max(at_ns, self._stamp_ns + 1)
        return self._stamp_ns
