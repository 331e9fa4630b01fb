"""From the ids on the wire to actors and their state."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.agents.model import (
    ACTOR_TYPE,
    RUNS_COLLECTION,
    AgentState,
    Run,
    ShowAgent,
    ShowRun,
    run_key,
)
from kelpie.core.errors import InvalidFieldError, NotFoundError
from kelpie.core.ids import ActorId, require_prefixed_id
from kelpie.server.operations import Call

_decode_run: Final = msgspec.msgpack.Decoder(Run).decode


def agent_actor(call: Call[Any, Any]) -> ActorId:
    """Return the actor of the agent in the path.

    Raises:
        InvalidFieldError: The id does not read ``agent-<uuid4>``.
    """
    agent_id = require_prefixed_id("path.agent_id", call.path["agent_id"], "agent")
    return ActorId(call.tenant, ACTOR_TYPE, agent_id)


async def read_agent(call: Call[Any, Any], agent: ActorId) -> AgentState:
    """Return the agent's last durable state.

    Raises:
        NotFoundError: It was never created, or is deleted.
    """
    state: AgentState = await call.deps.runtime.query(agent, ShowAgent())
    return state


async def read_run_by_id(call: Call[Any, Any], run_id: str) -> tuple[ActorId, Run]:
    """Return a run and the actor of its agent.

    Raises:
        InvalidFieldError: The id does not read ``run-<uuid4>``.
        NotFoundError: There is no such run.
    """
    require_prefixed_id("path.run_id", run_id, "run")
    row = await call.deps.store.list_item(call.tenant, RUNS_COLLECTION, run_id)
    if row is None:
        raise NotFoundError("run", run_id)
    return row.owner, await read_run(call, row.owner, run_id)


async def read_run(call: Call[Any, Any], agent: ActorId, run_id: str) -> Run:
    """Return one run of an agent, from its state or, once that has forgotten it, from its rows.

    Raises:
        NotFoundError: The agent has no such run.
    """
    try:
        run: Run = await call.deps.runtime.query(agent, ShowRun(run_id=run_id))
    except NotFoundError:
        body = await call.deps.store.kv_get(agent, run_key(run_id))
        if body is None:
            raise
        return _decode_run(body)
    return run


def require_cursor(field: str, value: str | None, prefix: str) -> str | None:
    """Return a cursor that is absent or reads ``<prefix>-<uuid4>``.

    Raises:
        InvalidFieldError: It reads otherwise.
    """
    if value is None:
        return None
    if not value:
        raise InvalidFieldError(field, f"is empty; leave it out or give {prefix}-<uuid4>")
    return require_prefixed_id(field, value, prefix)
