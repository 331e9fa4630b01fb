"""Runs: retrieve one."""

from __future__ import annotations

from kelpie.server.http import Response, json_response
from kelpie.server.letta.agent_view import view_run
from kelpie.server.letta.subjects import read_run_by_id
from kelpie.server.operations import Call, Nothing


async def retrieve_run(call: Call[Nothing, Nothing]) -> Response:
    """Return one run."""
    agent, run = await read_run_by_id(call, call.path["run_id"])
    return json_response(view_run(run, agent.key))
