"""What a member of a cluster decides to do.

Those with a ``session`` are operations of the store, each answered by an event: `LeaseCommand` and
`ShardsCommand` are two queues, in each of which one is under way at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kelpie.storage.cluster import NodeState
from kelpie.storage.records import ShardGrant


class Join(NamedTuple):
    """Begin the session in the store."""

    session: str


class Renew(NamedTuple):
    """Renew the session."""

    session: str


class WriteState(NamedTuple):
    """Tell the store what the node is doing."""

    session: str
    state: NodeState


class Survey(NamedTuple):
    """Ask for all nodes and shards."""

    session: str


class Claim(NamedTuple):
    """Own these shards if they are still free."""

    session: str
    shards: tuple[ShardGrant, ...]


class Release(NamedTuple):
    """Free these shards."""

    session: str
    shards: tuple[ShardGrant, ...]


class End(NamedTuple):
    """End the session ``other`` if its counter still says ``renewals``; None ends it anyhow."""

    session: str
    other: str
    renewals: int | None


class HandOver(NamedTuple):
    """Bring these shards to rest, then say `Drained`."""

    shards: frozenset[int]


class Gain(NamedTuple):
    """Serve these shards."""

    grants: tuple[ShardGrant, ...]


class Lose(NamedTuple):
    """Serve these shards no longer."""

    shards: frozenset[int]


class AnswerUntil(NamedTuple):
    """Answer nothing from this boot time on."""

    until_ns: int


class Point(NamedTuple):
    """Send callers of these shards to these addresses."""

    owners: Mapping[int, str]


class Hint(NamedTuple):
    """Tell the nodes at these addresses that a look is worth it."""

    addresses: frozenset[str]


class Begin(NamedTuple):
    """Answer `Began` with a new session's id."""


class Refuse(NamedTuple):
    """A node that lives has this node's name: give up."""


class Stop(NamedTuple):
    """The node is out of the cluster."""


LeaseCommand = Join | Renew | WriteState
ShardsCommand = Survey | Claim | Release | End
LocalCommand = HandOver | Gain | Lose | AnswerUntil | Point | Hint | Begin | Refuse | Stop
Command = LeaseCommand | ShardsCommand | LocalCommand
