"""Which node should own which shard: a pure function of what the store says.

Every node computes the same wish from the same view, so nobody has to be told. Each shard ranks the
nodes by a hash of their names (rendezvous hashing): a node that comes takes only what it now ranks
first for, and what a node that goes had is spread over all others; nothing else moves. Ranks follow
names, not sessions, so a node that comes back gets back what it had.

Before the ranks come the rules that a shard carries (`ShardRow.pinned`): the name of a node that is
open to it, or `apart_rule`, with which shards of one label lie on different nodes as far as there
are nodes. A draining node wishes for nothing; a cordoned one keeps what it has.

Never looks at a clock, and never decides who *may* write: only epochs do.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from kelpie.storage.cluster import ClusterView, NodeRow, ShardRow

_APART: Final = "apart:"
_RANKS_KEPT: Final = 4_096  # of nodes, each 4 bytes a shard
_WINNERS_KEPT: Final = 8


def apart_rule(label: str) -> str:
    """Return the rule that keeps a shard away from the others with the same label."""
    assert label, "a label has letters"
    return f"{_APART}{label}"


def label_of(rule: str) -> str:
    """Return the label of an `apart_rule`, empty for any other rule."""
    return rule.removeprefix(_APART) if rule.startswith(_APART) else ""


def is_name(text: str) -> bool:
    """Return whether ``text`` can be a node's name: no rule, nothing that a shell would change."""
    return text.replace("-", "").replace(".", "").replace("_", "").isalnum() and text.isascii()


@lru_cache(maxsize=_RANKS_KEPT)
def _ranks(name: str, shard_count: int) -> array[int]:
    """Return how much each shard wants the node: one hash, drawn out to a number per shard."""
    stream = hashlib.shake_128(b"kelpie placement 1:" + name.encode())
    return array("I", stream.digest(4 * shard_count))


@lru_cache(maxsize=_WINNERS_KEPT)
def rank_first(names: tuple[str, ...], shard_count: int) -> tuple[str, ...]:
    """Return for each shard which of the ``names``, given in order, it ranks first.

    A tie goes to the first. Takes a few seconds for a thousand nodes and 65,536 shards; what was
    computed for one membership is kept.
    """
    assert names, "somebody has to be first"
    assert list(names) == sorted(set(names)), "names are given once and in order"
    ranks = zip(*(_ranks(name, shard_count) for name in names), strict=True)
    return tuple(names[row.index(max(row))] for row in ranks)


def rank_all(names: Sequence[str], shard: int, shard_count: int) -> list[str]:
    """Return ``names`` in the order in which ``shard`` wants them."""
    return sorted(names, key=lambda name: (-_ranks(name, shard_count)[shard], name))


def living(view: ClusterView) -> list[NodeRow]:
    """Return the nodes whose sessions have not ended."""
    return [node for node in view.nodes if not node.ended_ms]


def open_nodes(view: ClusterView, *, silent: Iterable[str] = ()) -> list[NodeRow]:
    """Return the nodes that shards may go to: running, neither cordoned nor draining nor silent.

    Args:
        view: What the store says.
        silent: Sessions that seem to have stopped renewing.

    If there is no such node, cordoned ones will do, and at last draining ones: a shard that is
    served by a node about to go is better than one that nobody serves.
    """
    quiet = frozenset(silent)
    running = [
        node for node in living(view) if node.state == "running" and node.session not in quiet
    ]
    staying = [node for node in running if not node.is_draining]
    return [node for node in staying if not node.is_cordoned] or staying or running


def place(view: ClusterView, *, silent: Iterable[str] = ()) -> dict[int, str]:
    """Return the name of the node that should own each shard; empty when there is no node."""
    takers = tuple(sorted(node.name for node in open_nodes(view, silent=silent)))
    if not takers:
        return {}
    count = len(view.shards)
    first = rank_first(takers, count)
    keepers = {
        node.session: node.name
        for node in living(view)
        if node.state == "running" and node.is_cordoned and not node.is_draining
    }
    wished = {row.shard: keepers.get(row.session) or first[row.shard] for row in view.shards}
    wished.update({row.shard: row.pinned for row in view.shards if row.pinned in takers})
    for group in _groups(view.shards):
        wished.update(_spread(group, takers, count))
    assert len(wished) == count, "each shard has a place"
    return wished


def _groups(shards: Iterable[ShardRow]) -> list[list[int]]:
    """Return the shards that must lie apart, by label."""
    groups: dict[str, list[int]] = {}
    for row in shards:
        if row.pinned.startswith(_APART):
            groups.setdefault(row.pinned, []).append(row.shard)
    return [sorted(groups[label]) for label in sorted(groups)]


def _spread(group: Sequence[int], takers: Sequence[str], shard_count: int) -> dict[int, str]:
    """Give each shard of a group the node that it wants most of those that have fewest."""
    load = dict.fromkeys(takers, 0)
    wished: dict[int, str] = {}
    for shard in group:
        fewest = min(load.values())
        free = [name for name in takers if load[name] == fewest]
        wished[shard] = rank_all(free, shard, shard_count)[0]
        load[wished[shard]] += 1
    assert max(load.values()) - min(load.values()) <= 1, "no node has two before each has one"
    return wished
