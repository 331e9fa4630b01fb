"""A node as it knows itself, and how long it waits for what. See `membership` for what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kelpie.cluster.placement import living
from kelpie.core.limits import (
    LEASE_MARGIN_PARTS,
    LEASE_RENEWALS_PER_TTL,
    LEASE_TTL_MS_MAX,
    LEASE_TTL_MS_MIN,
    SHARD_MOVES_MAX,
)
from kelpie.storage.cluster import ClusterView, NodeRow, NodeState
from kelpie.storage.records import ShardGrant

NS_PER_MS: Final = 1_000_000
NEVER_NS: Final = 2**63 - 1
_NOTHING: Final = ClusterView((), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a node waits for what, on its boot clock.

    Attributes:
        ttl_ns: A session is ended when nothing is heard of it for this and a margin.
        margin_parts: A margin is one of so many parts of a ttl.
        renew_ns: Between two renewals, and between two looks at the others.
        retry_ns: After something failed.
        moves_max: How many shards are handed over at a time.
    """

    ttl_ns: int
    margin_parts: int
    renew_ns: int
    retry_ns: int
    moves_max: int

    @property
    def until_ns(self) -> int:
        """How long after sending a renewal a node may answer."""
        return self.ttl_ns - self.ttl_ns // self.margin_parts

    def patience_ns(self, ttl_ns: int) -> int:
        """Return for how long a session with this ttl must be silent to be ended."""
        return ttl_ns + -(-ttl_ns // self.margin_parts)


def timing_of(ttl_ms: int) -> Timing:
    """Return the timing for leases of ``ttl_ms``."""
    assert LEASE_TTL_MS_MIN <= ttl_ms <= LEASE_TTL_MS_MAX, "settings bound a lease"
    ttl_ns = ttl_ms * NS_PER_MS
    return Timing(
        ttl_ns=ttl_ns,
        margin_parts=LEASE_MARGIN_PARTS,
        renew_ns=ttl_ns // LEASE_RENEWALS_PER_TTL,
        retry_ns=ttl_ns // LEASE_MARGIN_PARTS,
        moves_max=SHARD_MOVES_MAX,
    )


class Sighting(NamedTuple):
    """A session's counter, and since when it has been seen like this."""

    renewals: int
    since_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node as it knows itself.

    Attributes:
        name: The node's name.
        timing: How long it waits.
        phase: Where it is in its life.
        written: The phase that the store was told.
        session: Its session; empty before it begins one.
        is_joined: Whether the store has the session.
        is_ready: Whether the rest of the program can serve.
        is_leaving: Whether it is on its way out.
        is_refused: Whether a living session has its name.
        until_ns: Until when it may answer.
        renew_at_ns: When the lease has to be seen to next.
        look_at_ns: When to look at the cluster next.
        looked_ns: When it was last told what a look saw.
        shards_at_ns: Before this no operation on shards begins.
        is_renewing: Whether an operation on the lease is under way.
        is_busy: Whether an operation on shards is under way.
        owned: Its shards and their epochs.
        handing: Those of ``owned`` that are being brought to rest.
        releasing: Shards at rest that the store has not freed yet, as far as is known.
        sightings: The counters of other living sessions.
        free: Since when each shard has been seen free.
        claimable: What to claim.
        surplus: What should be another's.
        view: What the store said last.
    """

    name: str
    timing: Timing
    phase: NodeState = "stopped"
    written: NodeState = "stopped"
    session: str = ""
    is_joined: bool = False
    is_ready: bool = False
    is_leaving: bool = False
    is_refused: bool = False
    until_ns: int = 0
    renew_at_ns: int = 0
    look_at_ns: int = 0
    looked_ns: int = 0
    shards_at_ns: int = 0
    is_renewing: bool = False
    is_busy: bool = False
    owned: Mapping[int, int] = field(default_factory=dict[int, int])
    handing: frozenset[int] = frozenset()
    releasing: Mapping[int, int] = field(default_factory=dict[int, int])
    sightings: Mapping[str, Sighting] = field(default_factory=dict[str, Sighting])
    free: Mapping[int, int] = field(default_factory=dict[int, int])
    claimable: tuple[ShardGrant, ...] = ()
    surplus: tuple[int, ...] = ()
    view: ClusterView = _NOTHING

    def may_answer(self, now_ns: int) -> bool:
        """Return whether what was read of an owned shard may be told at ``now_ns``."""
        return self.is_joined and now_ns < self.until_ns

    def check_invariants(self) -> None:
        """Assert what holds between two events."""
        assert not self.owned.keys() & self.releasing.keys(), "owned or released, not both"
        assert self.handing <= self.owned.keys(), "only what is owned is handed over"
        assert self.is_joined or not self.owned, "who is no member owns nothing"
        assert self.session or not self.is_joined, "a member has a session"


def silent(state: Member, now_ns: int) -> tuple[str, ...]:
    """Return the sessions that missed two renewals: no shard is meant for them."""
    suspect_ns = 2 * state.timing.renew_ns + state.timing.retry_ns
    return tuple(
        session for session, seen in state.sightings.items() if now_ns - seen.since_ns > suspect_ns
    )


def lease_holders(state: Member) -> list[NodeRow]:
    """Return the living nodes whose sessions are leases that can be ended."""
    return [n for n in living(state.view) if n.session in state.sightings and n.ttl_ms > 0]


def due_ns(state: Member, node: NodeRow) -> int:
    """Return when a session has been silent for long enough."""
    patience_ns = state.timing.patience_ns(node.ttl_ms * NS_PER_MS)
    return state.sightings[node.session].since_ns + patience_ns
