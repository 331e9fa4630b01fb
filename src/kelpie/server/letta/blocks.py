"""Core memory blocks of one agent: list, retrieve, update."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from kelpie.agents.model import UpdateBlock
from kelpie.core.errors import NotFoundError
from kelpie.memory.blocks import Block
from kelpie.server.decoding import require_storable
from kelpie.server.http import Response, json_response
from kelpie.server.letta.agent_view import view_block
from kelpie.server.letta.requests import BlockUpdate, ListQuery
from kelpie.server.letta.subjects import agent_actor, read_agent, require_cursor
from kelpie.server.letta.unsupported import BLOCK_FIELDS, refuse_unsupported
from kelpie.server.operations import Call, Nothing


async def list_blocks(call: Call[ListQuery, Nothing]) -> Response:
    """Return a page of the agent's blocks; the newest is the last that was added."""
    state = await read_agent(call, agent_actor(call))
    query = call.query
    blocks = list(state.blocks) if query.order == "asc" else list(state.blocks)[::-1]
    after = require_cursor("query.after", query.after, "block")
    before = require_cursor("query.before", query.before, "block")
    if after is not None:
        blocks = blocks[_position(blocks, after) + 1 :]
    if before is not None:
        blocks = blocks[: _position(blocks, before)] if before != after else []
        blocks = blocks if after is not None else blocks[-query.limit :]
    return json_response([view_block(block) for block in blocks[: query.limit]])


async def retrieve_block(call: Call[Nothing, Nothing]) -> Response:
    """Return one block by its label."""
    state = await read_agent(call, agent_actor(call))
    label = call.path["block_label"]
    for block in state.blocks:
        if block.label == label:
            return json_response(view_block(block))
    raise NotFoundError("block", label[:100])


async def update_block(call: Call[Nothing, BlockUpdate]) -> Response:
    """Change one block by its label; absent fields stay."""
    agent = agent_actor(call)
    body = call.body
    refuse_unsupported(body, BLOCK_FIELDS)
    changes: dict[str, Any] = {}
    for field in ("value", "limit", "label", "read_only"):
        if (value := getattr(body, field)) is not None:
            changes[field] = value
    if body.description is not UNSET:
        changes["description"] = body.description or ""
    if body.metadata is not UNSET:
        require_storable("body.metadata", body.metadata)
        changes["metadata"] = body.metadata or {}
    if body.tags is not None:
        changes["tags"] = tuple(body.tags)
    label = call.path["block_label"]
    block: Block = await call.tell(agent, UpdateBlock(label=label, changes=changes))
    return json_response(view_block(block))


def _position(blocks: list[Block], block_id: str) -> int:
    for index, block in enumerate(blocks):
        if block.id == block_id:
            return index
    raise NotFoundError("block", block_id)
