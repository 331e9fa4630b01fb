"""A node that has its store for itself says truthfully what it is: a cluster of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kelpie.core.limits import SHARD_COUNT

if TYPE_CHECKING:
    from tests.e2e.support.node import Node

INPUT, MISSING, USAGE = 2, 4, 64


@pytest.mark.covers("kelpie cluster status", "kelpie cluster shards", "kelpie cluster rebalance")
@pytest.mark.covers("GET /v1/cluster", "GET /v1/cluster/shards")
@pytest.mark.parametrize("beside", [True, False], ids=["beside a server", "alone"])
def test_one_node_owns_every_shard(node: Node, *, beside: bool) -> None:
    if beside:
        node.serve()
    shown = node.ok("cluster", "status")
    (living,) = [each for each in shown["nodes"] if not each["ended_ms"]]
    assert (living["name"], living["state"]) == ("local", "running")
    assert (living["shards"], shown["unowned"], shown["moves"]) == (SHARD_COUNT, 0, 0)
    shards = node.ok("cluster", "shards")
    assert [shard["shard"] for shard in shards] == list(range(SHARD_COUNT))
    assert {(shard["node"], shard["wished"]) for shard in shards} == {("local", "local")}
    assert node.ok("cluster", "rebalance", "--wait") == []
    assert "Every shard is where it should be." in node.cli("cluster", "rebalance").err
    assert f"{SHARD_COUNT} shards, 0 without an owner" in node.cli("cluster", "status").err


def test_a_watched_status_comes_again_and_follows_what_changes(node: Node) -> None:
    node.serve()
    watching = node.kelpie("cluster", "status", "--watch", "--json")
    watching.await_out('"moves": 0}\n')
    node.ok("cluster", "cordon", "local")
    watching.await_out('"cordoned": true')
    assert watching.status is None
    assert watching.end() != 0


@pytest.mark.covers("kelpie cluster where", "kelpie cluster pin", "kelpie cluster unpin")
@pytest.mark.covers("GET /v1/cluster/where", "POST /v1/cluster/pins")
def test_an_actor_is_found_and_its_rules_are_kept_with_its_shard(node: Node) -> None:
    node.serve()
    place = node.ok("cluster", "where", "agent/ada")["where"]
    assert (place["node"], place["pinned"], place["apart"]) == ("local", "", "")
    assert node.ok("cluster", "pin", "agent/ada", "--to", "eu-1")["shards"] == [place["shard"]]
    pinned = node.ok("cluster", "where", "agent/ada")["where"]
    assert (pinned["node"], pinned["pinned"]) == ("local", "eu-1")
    node.ok("cluster", "pin", "agent/ada", "agent/bob", "--apart", "pair")
    assert node.ok("cluster", "where", "agent/ada")["where"]["apart"] == "pair"
    node.ok("cluster", "unpin", "agent/ada", "agent/bob")
    assert node.ok("cluster", "where", "agent/ada")["where"] == place
    wrong = node.cli("cluster", "where", "ada", "--json")
    assert (wrong.status, wrong.error["code"]) == (INPUT, "invalid_field")
    assert node.cli("cluster", "pin", "agent/ada").status == USAGE


@pytest.mark.covers("kelpie cluster cordon", "kelpie cluster drain")
@pytest.mark.covers("POST /v1/cluster/nodes/{name}")
def test_a_node_is_marked_and_unmarked_and_the_last_one_goes_on_serving(node: Node) -> None:
    server = node.serve()
    assert node.ok("cluster", "cordon", "local")["cordoned"]
    drained = node.ok("cluster", "drain", "local")
    assert (drained["cordoned"], drained["draining"]) == (True, True)
    assert node.ok("cluster", "status")["moves"] == 0
    server.post("/v1/agents", {"name": "still served"})
    back = node.ok("cluster", "drain", "local", "--undo")
    assert (back["cordoned"], back["draining"], back["shards"]) == (False, False, SHARD_COUNT)
    missing = node.cli("cluster", "drain", "nobody", "--json")
    assert (missing.status, missing.error["code"]) == (MISSING, "not_found")
