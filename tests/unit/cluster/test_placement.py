"""Shards are spread evenly, move no more than they must, and follow the rules that they carry."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from kelpie.cluster.placement import apart_rule, is_name, place, rank_first
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.cluster import ClusterView, NodeRow, NodeState, ShardRow

pytestmark = pytest.mark.requirement("CLUSTER-PLACEMENT")


def node(
    name: str, *, state: NodeState = "running", cordoned: bool = False, draining: bool = False
) -> NodeRow:
    return NodeRow(f"s-{name}", name, f"{name}:1", state, 0, 5_000, cordoned, draining, 1, 0)


def view(
    *nodes: NodeRow, rules: dict[int, str] | None = None, owner: str = "", count: int = SHARD_COUNT
) -> ClusterView:
    rules = rules or {}
    rows = (ShardRow(shard, 1, owner, rules.get(shard, "")) for shard in range(count))
    return ClusterView(nodes, tuple(rows))


def names(count: int) -> tuple[str, ...]:
    return tuple(sorted(f"node-{number}" for number in range(count)))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_every_node_gets_about_as_much_as_the_others(count: int) -> None:
    load = Counter(place(view(*map(node, names(count)))).values())
    mean = SHARD_COUNT / count
    assert len(load) == count
    assert max(load.values()) < mean + 4 * mean**0.5
    assert min(load.values()) > mean - 4 * mean**0.5


def test_who_comes_takes_only_its_own_and_who_goes_leaves_the_others_as_they_were() -> None:
    for fewer, more in pairwise([names(count) for count in range(1, 9)]):
        before = place(view(*map(node, fewer)))
        after = place(view(*map(node, more)))
        (newcomer,) = set(more) - set(fewer)
        moved = {shard for shard in before if before[shard] != after[shard]}
        assert {after[shard] for shard in moved} == {newcomer}
        assert moved == {shard for shard in after if after[shard] == newcomer}


def test_the_order_of_the_rows_and_the_sessions_change_nothing() -> None:
    a, b, c = map(node, "abc")
    assert place(view(a, b, c)) == place(view(c, b._replace(session="other"), a))


def test_nodes_that_do_not_run_drain_or_have_ended_get_nothing() -> None:
    others = [
        node("b", state="initializing"),
        node("c", state="shutting_down"),
        node("d", draining=True),
        node("e")._replace(ended_ms=5),
        node("f"),
    ]
    wished = place(view(node("a"), *others), silent=["s-f"])
    assert set(wished.values()) == {"a"}
    assert place(view(node("b", state="initializing"))) == {}


def test_a_cordoned_node_keeps_what_it_has_and_gets_no_more() -> None:
    nodes = [node("a", cordoned=True), node("b")]
    assert set(place(view(*nodes, owner="s-a")).values()) == {"a"}
    assert set(place(view(*nodes, owner="s-b")).values()) == {"b"}
    assert set(place(view(*nodes)).values()) == {"b"}


def test_the_last_node_serves_even_while_it_drains() -> None:
    assert set(place(view(node("a", draining=True))).values()) == {"a"}


def test_a_pinned_shard_is_where_its_node_is_as_long_as_that_lives() -> None:
    shards = range(SHARD_COUNT)
    wished = place(view(node("a"), node("b"), rules=dict.fromkeys(shards, "b")))
    assert set(wished.values()) == {"b"}
    orphaned = place(view(node("a"), node("c"), rules=dict.fromkeys(shards, "b")))
    assert orphaned == place(view(node("a"), node("c")))


def test_shards_of_one_label_lie_on_different_nodes_as_far_as_there_are_nodes() -> None:
    group = [3, 77, 150]
    rules = dict.fromkeys(group, apart_rule("pair"))
    three = place(view(*map(node, "abc"), rules=rules))
    assert len({three[shard] for shard in group}) == 3
    two = place(view(*map(node, "ab"), rules=rules))
    assert sorted(Counter(two[shard] for shard in group).values()) == [1, 2]
    plain = place(view(*map(node, "abc")))
    assert all(three[shard] == plain[shard] for shard in plain if shard not in group)


@pytest.mark.parametrize(
    ("text", "good"),
    [("node1", True), ("eu-1.a_b", True), ("", False), ("apart:x", False), ("a b", False)],
)
def test_a_name_of_a_node_is_never_taken_for_a_rule(text: str, *, good: bool) -> None:
    assert is_name(text) is good


def test_a_thousand_nodes_share_the_shards_of_a_hundred_million_actors() -> None:
    shard_count = 16_384  # of 6,100 actors each
    everybody = names(1_000)
    first = rank_first(everybody, shard_count)
    load = Counter(first)
    mean = shard_count / len(everybody)
    assert len(load) == len(everybody)
    assert max(load.values()) < mean + 6 * mean**0.5
    fewer = rank_first(everybody[1:], shard_count)
    moved = [shard for shard in range(shard_count) if first[shard] != fewer[shard]]
    assert len(moved) == load[everybody[0]]
