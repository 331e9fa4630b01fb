"""The operations of the Letta dialect."""

from __future__ import annotations

from typing import Any, Final

from kelpie.server.letta import blocks, messages, runs
from kelpie.server.letta.agents import AgentRoutes
from kelpie.server.letta.message_types import AnyMessage, LettaResponse
from kelpie.server.letta.requests import (
    AgentCreate,
    AgentListQuery,
    AgentQuery,
    AgentUpdate,
    BlockUpdate,
    CancelRequest,
    ListQuery,
    MessageCreate,
    MessageListQuery,
)
from kelpie.server.letta.responses import AgentOut, BlockOut, RunOut
from kelpie.server.operations import Nothing, Operation

Table = tuple[Operation[Any, Any], ...]

AGENT: Final = "/v1/agents/{agent_id}"
BLOCK: Final = f"{AGENT}/core-memory/blocks/{{block_label}}"


def letta_operations() -> Table:
    """Return the operations that ``letta-client`` calls."""
    return (*_agents(), *_blocks(), *_messages())


def _agents() -> Table:
    routes = AgentRoutes()
    return (
        Operation(
            method="POST",
            path="/v1/agents",
            summary="Create an agent",
            tag="agents",
            handler=routes.create,
            query=Nothing,
            body=AgentCreate,
            response=AgentOut,
        ),
        Operation(
            method="GET",
            path="/v1/agents",
            summary="List agents",
            tag="agents",
            handler=routes.list_page,
            query=AgentListQuery,
            body=Nothing,
            response=list[AgentOut],
        ),
        Operation(
            method="GET",
            path=AGENT,
            summary="Retrieve an agent",
            tag="agents",
            handler=routes.retrieve,
            query=AgentQuery,
            body=Nothing,
            response=AgentOut,
            errors=("not_found",),
        ),
        Operation(
            method="PATCH",
            path=AGENT,
            summary="Change an agent",
            tag="agents",
            handler=routes.update,
            query=Nothing,
            body=AgentUpdate,
            response=AgentOut,
            errors=("not_found",),
        ),
        Operation(
            method="DELETE",
            path=AGENT,
            summary="Delete an agent",
            tag="agents",
            handler=routes.delete,
            query=Nothing,
            body=Nothing,
            response=dict[str, str],
            errors=("not_found",),
        ),
        Operation(
            method="GET",
            path="/v1/runs/{run_id}",
            summary="Retrieve a run",
            tag="runs",
            handler=runs.retrieve_run,
            query=Nothing,
            body=Nothing,
            response=RunOut,
            errors=("not_found",),
        ),
    )


def _blocks() -> Table:
    return (
        Operation(
            method="GET",
            path=f"{AGENT}/core-memory/blocks",
            summary="List the core memory blocks of an agent",
            tag="blocks",
            handler=blocks.list_blocks,
            query=ListQuery,
            body=Nothing,
            response=list[BlockOut],
            errors=("not_found",),
        ),
        Operation(
            method="GET",
            path=BLOCK,
            summary="Retrieve a core memory block",
            tag="blocks",
            handler=blocks.retrieve_block,
            query=Nothing,
            body=Nothing,
            response=BlockOut,
            errors=("not_found",),
        ),
        Operation(
            method="PATCH",
            path=BLOCK,
            summary="Change a core memory block",
            tag="blocks",
            handler=blocks.update_block,
            query=Nothing,
            body=BlockUpdate,
            response=BlockOut,
            errors=("not_found", "conflict"),
        ),
    )


def _messages() -> Table:
    return (
        Operation(
            method="POST",
            path=f"{AGENT}/messages",
            summary="Send messages and wait for the answer",
            tag="messages",
            handler=messages.create_message,
            query=Nothing,
            body=MessageCreate,
            response=LettaResponse,
            errors=("not_found", "pending_approval", "already_decided", "run_failed", "store_held"),
            streams=True,
            waits=True,
        ),
        Operation(
            method="POST",
            path=f"{AGENT}/messages/stream",
            summary="Send messages and stream the answer",
            tag="messages",
            handler=messages.stream_message,
            query=Nothing,
            body=MessageCreate,
            errors=("not_found", "pending_approval", "already_decided", "store_held"),
            media="text/event-stream",
            streams=True,
            waits=True,
        ),
        Operation(
            method="POST",
            path=f"{AGENT}/messages/async",
            summary="Send messages and let the run go on by itself",
            tag="messages",
            handler=messages.send_message,
            query=Nothing,
            body=MessageCreate,
            response=RunOut,
            errors=("not_found", "pending_approval"),
        ),
        Operation(
            method="POST",
            path=f"{AGENT}/messages/cancel",
            summary="Cancel runs of an agent",
            tag="messages",
            handler=messages.cancel_runs,
            query=Nothing,
            body=CancelRequest,
            response=dict[str, str],
            errors=("not_found", "conflict"),
        ),
        Operation(
            method="GET",
            path=f"{AGENT}/messages",
            summary="List the messages of an agent",
            tag="messages",
            handler=messages.list_messages,
            query=MessageListQuery,
            body=Nothing,
            response=list[AnyMessage],
            errors=("not_found",),
        ),
    )
