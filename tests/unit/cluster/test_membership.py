"""What the machine makes of single events; whole lives are in `test_node` and in the models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kelpie.cluster import commands as c
from kelpie.cluster import events as e
from kelpie.cluster.member import NS_PER_MS, Member, Sighting, timing_of
from kelpie.cluster.membership import decide, wake_ns
from kelpie.core.limits import CLOCK_RATE_PPM_MAX, LEASE_TTL_MS, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN
from kelpie.storage.cluster import ClusterView, NodeRow, ShardRow
from kelpie.storage.records import ShardGrant

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.requirement("CLUSTER-LEASE")

TIMING = timing_of(LEASE_TTL_MS)
NOW_NS = 100 * TIMING.ttl_ns


def row(name: str, *, renewals: int = 0) -> NodeRow:
    return NodeRow(f"s-{name}", name, f"{name}:1", "running", renewals, 5_000, False, False, 1, 0)


def member(*, owned: Mapping[int, int] | None = None) -> Member:
    return Member(
        name="a",
        timing=TIMING,
        phase="running",
        written="running",
        session="s-a",
        is_joined=True,
        is_ready=True,
        until_ns=NOW_NS + TIMING.ttl_ns,
        renew_at_ns=NOW_NS + TIMING.renew_ns,
        look_at_ns=NOW_NS + TIMING.renew_ns,
        looked_ns=NOW_NS,
        owned=owned or {},
    )


def view(*shards: ShardRow, others: tuple[NodeRow, ...] = ()) -> ClusterView:
    return ClusterView((row("a"), *others), shards)


@pytest.mark.parametrize("ttl_ms", [LEASE_TTL_MS_MIN, LEASE_TTL_MS, LEASE_TTL_MS_MAX])
def test_the_slowest_clock_allowed_stops_before_the_fastest_one_ends_its_session(
    ttl_ms: int,
) -> None:
    timing = timing_of(ttl_ms)
    million = 1_000_000
    true_ns = timing.patience_ns(timing.ttl_ns) * million // (million + CLOCK_RATE_PPM_MAX)
    own_ns = true_ns * (million - CLOCK_RATE_PPM_MAX) // million
    assert own_ns > timing.until_ns
    assert timing.renew_ns * 2 < timing.until_ns


def test_a_lease_runs_from_the_sending_and_never_back() -> None:
    before = member()
    sent_ns = NOW_NS - TIMING.renew_ns
    after = decide(replace(before, until_ns=0), e.Renewed(NOW_NS, "s-a", sent_ns))
    assert after.state.until_ns == sent_ns + TIMING.until_ns
    assert after.state.may_answer(sent_ns + TIMING.until_ns - 1)
    assert not after.state.may_answer(sent_ns + TIMING.until_ns)
    late = decide(before, e.Renewed(NOW_NS, "s-a", sent_ns))
    assert late.state.until_ns == before.until_ns


def test_what_is_being_released_is_never_taken_for_owned_again() -> None:
    before = replace(member(), releasing={7: 3}, is_busy=True)
    seen = view(*(ShardRow(shard, 3, "s-a" if shard == 7 else "", "") for shard in range(8)))
    after = decide(before, e.Viewed(NOW_NS, "s-a", seen))
    assert 7 not in after.state.owned
    assert after.state.releasing == {7: 3}
    release = c.Release("s-a", (ShardGrant(7, 3),))
    assert release in after.commands


def test_a_claim_whose_answer_was_lost_is_found_at_the_next_look() -> None:
    seen = view(ShardRow(0, 9, "s-a", ""))
    after = decide(replace(member(), is_busy=True), e.Viewed(NOW_NS, "s-a", seen))
    assert after.state.owned == {0: 9}
    assert c.Gain((ShardGrant(0, 9),)) in after.commands


def test_an_answer_to_an_earlier_session_changes_nothing() -> None:
    before = replace(member(), is_busy=True)
    after = decide(before, e.Claimed(NOW_NS, "s-before", (ShardGrant(0, 9),)))
    assert after.state.owned == {}
    assert not after.state.is_busy
    assert after.commands == ()


def test_time_in_which_nobody_looked_does_not_count_against_others() -> None:
    other = row("b")
    silent_ns = 10 * TIMING.ttl_ns
    before = replace(
        member(),
        is_busy=True,
        looked_ns=NOW_NS - silent_ns,
        sightings={"s-b": Sighting(0, NOW_NS - silent_ns)},
    )
    woken = decide(replace(before, is_busy=False, view=view(others=(other,))), e.Woke(NOW_NS))
    assert not any(isinstance(command, c.End) for command in woken.commands)
    after = decide(before, e.Viewed(NOW_NS, "s-a", view(others=(other,))))
    assert NOW_NS - after.state.sightings["s-b"].since_ns <= 2 * TIMING.renew_ns
    assert not any(isinstance(command, c.End) for command in after.commands)


def test_a_session_that_is_watched_and_silent_is_ended_under_the_counter_that_was_seen() -> None:
    other = row("b", renewals=4)
    patience_ns = TIMING.patience_ns(5_000 * NS_PER_MS)
    before = replace(
        member(),
        view=view(others=(other,)),
        sightings={"s-b": Sighting(4, NOW_NS - patience_ns)},
    )
    early = decide(before, e.Woke(NOW_NS - 1))
    assert not any(isinstance(command, c.End) for command in early.commands)
    assert wake_ns(before) <= NOW_NS
    assert c.End("s-a", "s-b", 4) in decide(before, e.Woke(NOW_NS)).commands


def test_a_session_that_ended_takes_everything_with_it() -> None:
    before = replace(member(owned={1: 2, 3: 4}), is_renewing=True)
    after = decide(before, e.LeaseEnded(NOW_NS, "s-a"))
    assert after.state.owned == {}
    assert not after.state.may_answer(NOW_NS)
    assert after.commands == (c.Lose(frozenset({1, 3})), c.AnswerUntil(0), c.Begin())
