"""Effects and the questions they ask: list, show, approve, deny, resolve.

An approval lives in its effect's row and belongs to the actor that asked; every answer is a turn of
that actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kelpie.actors.commands import Message
from kelpie.core.errors import AlreadyDecidedError, ConflictError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.effects.messages import ApproveEffect, DenyEffect, ResolveEffect
from kelpie.effects.model import EffectRecord
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.names import actor_name, parse_actor
from kelpie.server.ops.requests import ApprovalListQuery, Decision, EffectListQuery, Resolution
from kelpie.server.ops.responses import EffectPage, view_effect
from kelpie.storage.records import EffectRow, EffectState, Page

ID_CHARS_MAX: Final = 64

_decode: Final = msgspec.msgpack.Decoder(EffectRecord).decode


async def list_approvals(call: Call[ApprovalListQuery, Nothing]) -> Response:
    """Return effects that ask for a person, oldest first."""
    query = call.query
    states: Sequence[EffectState] = query.state or ("waiting",)
    return await _list(call, states, None, _page(call))


async def list_effects(call: Call[EffectListQuery, Nothing]) -> Response:
    """Return effects, oldest first unless asked otherwise."""
    query = call.query
    actor = parse_actor(call, query.actor) if query.actor is not None else None
    return await _list(
        call, query.state or (), actor, _page(call, descending=query.order == "desc")
    )


async def show_effect(call: Call[Nothing, Nothing]) -> Response:
    """Return one effect."""
    row = await _row(call)
    return json_response(view_effect(actor_name(row.actor), _decode(row.body)))


async def approve(call: Call[Nothing, Decision]) -> Response:
    """Say yes to a waiting effect; a second answer is refused."""
    row = await _waiting_row(call)
    body = call.body
    message = ApproveEffect(effect_id=row.effect_id, digest=body.digest, reason=body.reason)
    return await _decide(call, row, message)


async def deny(call: Call[Nothing, Decision]) -> Response:
    """Say no to a waiting effect; a second answer is refused."""
    row = await _waiting_row(call)
    return await _decide(call, row, DenyEffect(effect_id=row.effect_id, reason=call.body.reason))


async def resolve(call: Call[Nothing, Resolution]) -> Response:
    """Say what became of an unknown effect."""
    row = await _row(call)
    if row.state != "unknown" and call.key is None:
        problem = f"effect {row.effect_id} is {row.state}; only an unknown one can be settled"
        raise ConflictError(problem, effect_id=row.effect_id, state=row.state)
    message = ResolveEffect(
        effect_id=row.effect_id, succeeded=call.body.succeeded, reason=call.body.reason
    )
    return await _decide(call, row, message)


def _page(call: Call[Any, Any], *, descending: bool = False) -> Page:
    query = call.query
    return Page(tenant=call.tenant, limit=query.limit, after=query.after, descending=descending)


async def _list(
    call: Call[Any, Any],
    states: Sequence[EffectState],
    actor: ActorId | None,
    page: Page,
) -> Response:
    rows = await call.deps.store.effects(page, states=states, actor=actor)
    shown = [view_effect(actor_name(row.actor), _decode(row.body)) for row in rows]
    following = rows[-1].effect_id if len(rows) == page.limit else None
    return json_response(EffectPage(effects=shown, next_after=following))


async def _row(call: Call[Any, Any]) -> EffectRow:
    effect_id = call.path["effect_id"]
    row = None
    if len(effect_id) <= ID_CHARS_MAX:
        row = await call.deps.store.effect(call.tenant, effect_id)
    if row is None:
        raise NotFoundError("effect", effect_id[:ID_CHARS_MAX])
    return row


async def _waiting_row(call: Call[Any, Any]) -> EffectRow:
    """Return an effect that may still be answered; under a key, the same answer may come again."""
    row = await _row(call)
    if row.state in {"proposed", "waiting"} or call.key is not None:
        return row
    raise AlreadyDecidedError(
        f"effect {row.effect_id} is {row.state}; it was decided before",
        effect_id=row.effect_id,
        state=row.state,
    )


async def _decide(call: Call[Any, Any], row: EffectRow, message: Message) -> Response:
    try:
        record: EffectRecord = await call.tell(row.actor, message)
    except NotFoundError:
        # Somebody else's answer brought it to its end between the look and the turn.
        row = await _row(call)
        problem = f"effect {row.effect_id} is {row.state}; it was decided before"
        raise AlreadyDecidedError(problem, effect_id=row.effect_id, state=row.state) from None
    return json_response(view_effect(actor_name(row.actor), record))
