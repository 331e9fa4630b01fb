"""Submitted calls: handed in with ``Prefer: respond-async``, asked about, taken back, listed.

Every call is seen by its tenant alone.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.actors.described import Described
from kelpie.actors.submissions import SubmittedCall
from kelpie.core.ids import ActorId
from kelpie.server.actors.requests import Arguments, CallListQuery, CallQuery
from kelpie.server.actors.responses import CallErrorOut, CallOut, CallPage
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.names import actor_name, parse_actor
from kelpie.storage.records import Page

_PENDING: Final = ("pending", "running")


async def submit(call: Call[Nothing, Arguments], actor: ActorId) -> Response:
    """Keep the call and say where it is found."""
    submitted = await call.deps.actors.submit(
        actor, call.path["method"], call.raw, principal=call.principal, key=call.key
    )
    response = json_response(_view(call, submitted))
    response.status = 202
    location = f"/v1/calls/{submitted.stored.call_id}".encode()
    response.headers += [(b"location", location), (b"preference-applied", b"respond-async")]
    return response


async def show(call: Call[CallQuery, Nothing]) -> Response:
    """Return one call, once it has ended or when the wait is over."""
    found = await call.deps.actors.calls.wait(call.tenant, call.path["call_id"], call.query.wait_s)
    return json_response(_view(call, found))


async def find(call: Call[CallListQuery, Nothing]) -> Response:
    """Return calls of the tenant, oldest first."""
    query = call.query
    actor = parse_actor(call, query.actor) if query.actor is not None else None
    page = Page(tenant=call.tenant, limit=query.limit, after=query.after)
    rows = await call.deps.actors.calls.find(page, status=query.state, actor=actor)
    following = rows[-1].stored.call_id if len(rows) == query.limit else None
    shown = [_head(row) for row in rows]
    return json_response(CallPage(calls=shown, next_after=following))


async def cancel(call: Call[Nothing, Nothing]) -> Response:
    """Take a call back that has not begun; a second time it is the same answer."""
    found = await call.deps.actors.calls.cancel(call.tenant, call.path["call_id"])
    return json_response(_view(call, found))


def _head(found: SubmittedCall, result: Any = None, error: CallErrorOut | None = None) -> CallOut:
    stored = found.stored
    return CallOut(
        call_id=stored.call_id,
        actor=actor_name(stored.actor),
        method=stored.method,
        state=found.status,
        principal=stored.principal,
        created_ms=stored.created_ms,
        ended_ms=stored.ended_ms or None,
        expires_ms=stored.expires_ms or None,
        result=result,
        error=error,
    )


def _view(call: Call[Any, Any], found: SubmittedCall) -> CallOut:
    """Return a call with what it came to."""
    if found.status == "completed":
        return _head(found, result=msgspec.Raw(call.deps.actors.result_json(found)))
    if found.status in {"failed", "dead"}:
        described = msgspec.msgpack.decode(found.stored.body, type=Described)
        return _head(found, error=msgspec.convert(described, CallErrorOut, from_attributes=True))
    assert found.status in {*_PENDING, "cancelled"}, f"a call is {found.status}"
    return _head(found)
