"""The cluster as the store knows it: nodes, shards, where an actor lives, and what people may mark.

Any node answers, since all of it is in the store. Marks are wishes: nodes act on them at their next
look. Who owns a shard changes by no request here.
"""

from __future__ import annotations

from collections import Counter

from kelpie.cluster.placement import apart_rule, label_of, living, place
from kelpie.core.errors import NotFoundError
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.names import parse_actor
from kelpie.server.ops.requests import NodeMarks, PinRequest, WhereQuery
from kelpie.server.ops.responses import ClusterOut, NodeOut, PinOut, ShardList, ShardOut, WhereOut
from kelpie.storage.cluster import ClusterView, NodeRow, ShardRow


async def show_cluster(call: Call[Nothing, Nothing]) -> Response:
    """Return the nodes, and how much each owns."""
    view = await call.deps.cluster.cluster()
    owned = Counter(row.session for row in view.shards)
    shards = _shards(view)
    nodes = [_node(node, owned[node.session]) for node in view.nodes]
    unowned = sum(not shard.node for shard in shards)
    moves = sum(_is_misplaced(shard) for shard in shards)
    return json_response(ClusterOut(nodes=nodes, shards=len(shards), unowned=unowned, moves=moves))


async def list_shards(call: Call[Nothing, Nothing]) -> Response:
    """Return every shard with its owner, and the node that should own it."""
    return json_response(ShardList(shards=_shards(await call.deps.cluster.cluster())))


async def find_actor(call: Call[WhereQuery, Nothing]) -> Response:
    """Return which node serves an actor, whether or not the actor exists."""
    actor = parse_actor(call, call.query.actor)
    shard = _shards(await call.deps.cluster.cluster())[actor.shard]
    return json_response(WhereOut(actor=call.query.actor, where=shard))


async def mark_node(call: Call[Nothing, NodeMarks]) -> Response:
    """Cordon a node, drain it, or take both back."""
    name, body = call.path["name"], call.body
    is_cordoned = body.cordoned or body.draining
    await call.deps.cluster.cordon(name, is_cordoned=is_cordoned, is_draining=body.draining)
    view = await call.deps.cluster.cluster()
    owned = Counter(row.session for row in view.shards)
    for node in living(view):
        if node.name == name:
            return json_response(_node(node, owned[node.session]))
    raise NotFoundError("node", name, hint="it has just ended")


async def pin_actors(call: Call[Nothing, PinRequest]) -> Response:
    """Pin the shards of actors to a node, keep them apart, or let them go anywhere again."""
    body = call.body
    rule = apart_rule(body.apart) if body.apart else body.node
    shards = sorted({parse_actor(call, name, field="body.actors").shard for name in body.actors})
    for shard in shards:
        await call.deps.cluster.pin(shard, rule)
    return json_response(PinOut(shards=shards, node=body.node, apart=body.apart))


def _shards(view: ClusterView) -> list[ShardOut]:
    wished = place(view)
    nodes = {node.session: node for node in living(view)}
    return [_shard(row, nodes.get(row.session), wished) for row in view.shards]


def _shard(row: ShardRow, owner: NodeRow | None, wished: dict[int, str]) -> ShardOut:
    apart = label_of(row.pinned)
    return ShardOut(
        shard=row.shard,
        epoch=row.epoch,
        node=owner.name if owner else "",
        address=owner.address if owner else "",
        wished=wished.get(row.shard, ""),
        pinned="" if apart else row.pinned,
        apart=apart,
    )


def _is_misplaced(shard: ShardOut) -> bool:
    return bool(shard.wished) and shard.wished != shard.node


def _node(node: NodeRow, shards: int) -> NodeOut:
    return NodeOut(
        name=node.name,
        address=node.address,
        state=node.state,
        session=node.session,
        shards=shards,
        cordoned=node.is_cordoned,
        draining=node.is_draining,
        renewals=node.renewals,
        ttl_ms=node.ttl_ms,
        started_ms=node.started_ms,
        ended_ms=node.ended_ms,
    )
