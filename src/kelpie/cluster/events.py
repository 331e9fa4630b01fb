"""What a member of a cluster is told. Every event carries the node's boot time, in nanoseconds.

An `Answer` is what an operation of the store came to, and names the session that asked, so that one
that arrives late is not taken for the next session's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kelpie.storage.cluster import ClusterView, NodeState
from kelpie.storage.records import ShardGrant


@dataclass(frozen=True, slots=True)
class _Event:
    """Something happened at ``now_ns``."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class Began(_Event):
    """A session may begin under this id, which nobody used before."""

    session: str


@dataclass(frozen=True, slots=True)
class Prepared(_Event):
    """The rest of the program can serve."""


@dataclass(frozen=True, slots=True)
class Left(_Event):
    """The node should leave."""


@dataclass(frozen=True, slots=True)
class Hinted(_Event):
    """Somebody says that a look is worth it."""


@dataclass(frozen=True, slots=True)
class Woke(_Event):
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Fenced(_Event):
    """The store refused a commit to these shards: their epochs have moved."""

    shards: frozenset[int]


@dataclass(frozen=True, slots=True)
class Drained(_Event):
    """These shards are at rest: no turn runs, no commit is on its way, and none will begin."""

    shards: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Answer(_Event):
    """The store answered what ``session`` asked; ``is_of_lease`` says which kind of operation."""

    session: str
    is_of_lease: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Joined(_Answer):
    """The store has the session; asked for at ``sent_ns``."""

    sent_ns: int
    is_of_lease: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Refused(_Answer):
    """A living session has the node's name."""

    is_of_lease: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Renewed(_Answer):
    """The renewal that was sent at ``sent_ns`` was counted."""

    sent_ns: int
    is_of_lease: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class StateWritten(_Answer):
    """The store was told the node's state."""

    state: NodeState
    is_of_lease: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LeaseFailed(_Answer):
    """An operation on the lease failed; whether it happened is not known."""

    is_of_lease: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LeaseEnded(_Answer):
    """The store says that the session has ended, in answer to an operation on the lease."""

    is_of_lease: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Viewed(_Answer):
    """The store told of all nodes and shards."""

    view: ClusterView


@dataclass(frozen=True, slots=True)
class Claimed(_Answer):
    """These shards are owned now."""

    grants: tuple[ShardGrant, ...]


@dataclass(frozen=True, slots=True)
class Released(_Answer):
    """These shards are not owned any more."""

    grants: tuple[ShardGrant, ...]


@dataclass(frozen=True, slots=True)
class Ended(_Answer):
    """The session ``other`` has ended, or was renewed before it could be ended."""

    other: str


@dataclass(frozen=True, slots=True)
class ShardsFailed(_Answer):
    """An operation on shards failed; whether it happened is not known."""


@dataclass(frozen=True, slots=True)
class ShardsEnded(_Answer):
    """The store says that the session has ended, in answer to an operation on shards."""


Answer = (
    Joined
    | Refused
    | Renewed
    | StateWritten
    | LeaseFailed
    | LeaseEnded
    | Viewed
    | Claimed
    | Released
    | Ended
    | ShardsFailed
    | ShardsEnded
)
Event = Began | Prepared | Left | Hinted | Woke | Fenced | Drained | Answer
