"""Creating, changing and deleting an agent.

Pure, over a `Draft`. Everything is checked before anything changes.
"""

from __future__ import annotations

from kelpie.actors.commands import Audit, Delete, DeleteListItem, Reply
from kelpie.agents import loop
from kelpie.agents.config import change_config, check_config
from kelpie.agents.draft import Draft
from kelpie.agents.model import (
    COLLECTION,
    AgentConfig,
    AgentState,
    CreateAgent,
    UpdateAgent,
    UpdateBlock,
)
from kelpie.core.errors import ConflictError, NotFoundError
from kelpie.memory.blocks import change_block


def require_created(state: AgentState) -> None:
    """Return if the agent exists.

    Raises:
        NotFoundError: It was never created, or it was deleted.
    """
    if not state.config.name:
        raise NotFoundError("agent", state.agent_id)


def create_agent(draft: Draft, message: CreateAgent) -> None:
    """Create the agent.

    Raises:
        ConflictError: It exists.
        InputError: The configuration or a block is refused.
    """
    before = draft.state
    agent_id = before.agent_id
    if before.config.name:
        raise ConflictError(f"agent {agent_id!r} exists already", agent_id=agent_id)
    check_config(message.config, message.blocks, draft.tools)
    assert before.run is None, "what does not exist runs nothing"
    draft.change(config=message.config, blocks=message.blocks, created_ms=draft.turn.now_ms)
    draft.publish()
    draft.do(Audit(kind="agent.created", body={"agent_id": agent_id}))
    assert draft.state.config.name, "a created agent has a name"
    draft.do(Reply(value=draft.state))


def update_agent(draft: Draft, message: UpdateAgent) -> None:
    """Replace fields of the configuration; an active run goes on under the new one.

    Raises:
        InputError: A field is unknown or refused.
    """
    config = change_config(draft.state.config, message.changes)
    check_config(config, draft.state.blocks, draft.tools)
    assert config.name, "an agent keeps a name"
    draft.change(config=config)
    draft.publish()
    body = {"agent_id": draft.state.agent_id, "fields": sorted(message.changes)}
    draft.do(Audit(kind="agent.updated", body=body))
    assert draft.state.config is config, "the new configuration holds"
    draft.do(Reply(value=draft.state))


def update_block(draft: Draft, message: UpdateBlock) -> None:
    """Change a block of core memory.

    Raises:
        NotFoundError: No block has this label.
        InputError: The change is refused.
    """
    before = draft.state.blocks
    blocks = change_block(before, message.label, message.changes)
    check_config(draft.state.config, blocks, draft.tools)
    assert len(blocks) == len(before), "a change adds and removes no block"
    index = next(i for i, block in enumerate(before) if block.label == message.label)
    assert blocks[index].id == before[index].id, "blocks keep their places"
    draft.change_blocks(blocks)
    draft.do(Reply(value=blocks[index]))


def delete_agent(draft: Draft) -> None:
    """Delete the agent with all its rows; an active run is cancelled first."""
    agent_id = draft.state.agent_id
    if draft.state.run is not None:
        loop.cancel_run(draft)
    ended = draft.state
    assert ended.run is None, "nothing runs when the agent goes"
    draft.do(Audit(kind="agent.deleted", body={"agent_id": agent_id}))
    draft.do(DeleteListItem(collection=COLLECTION, item_id=agent_id))
    draft.do(Delete())
    draft.do(Reply(value=None))
    draft.state = AgentState(agent_id=agent_id, config=AgentConfig(name=""))
    assert not draft.state.queue, "nothing waits for a deleted agent"
