"""Requests that the node which owns an actor answers for the node that was asked.

Owns their two forms: a decoded call becomes what is sent, and what arrived becomes a call again.
Who asks was found out by the node that was asked, and is believed: only nodes that proved
themselves speak here. Which operations are answered so is the table's; no peer can ask for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kelpie.cluster.messages import EdgeAnswer, EdgeCall
from kelpie.cluster.router import KEY_PREFIX
from kelpie.core.errors import ConflictError
from kelpie.core.ids import Tenant
from kelpie.server.decoding import decode_body, decode_query
from kelpie.server.http import Response
from kelpie.server.operations import Call, Operation
from kelpie.server.ports import Deps

KEY_BYTES: Final = 16


def with_key(call: Call[Any, Any]) -> Call[Any, Any]:
    """Return the call with an idempotency key, so that passing it on twice does it once."""
    if call.key is not None:
        return call
    return msgspec.structs.replace(call, key=KEY_PREFIX + call.deps.rng.bytes(KEY_BYTES).hex())


def pack_call(method: str, path: str, query: bytes, call: Call[Any, Any]) -> EdgeCall:
    """Return what is sent to the owner; the key is the call's."""
    assert call.key, "what leaves this node has a key"
    return EdgeCall(
        method=method,
        path=path,
        query=query,
        body=call.raw,
        tenant=call.tenant,
        principal=call.principal,
        is_local=call.local,
        key=call.key,
        prefers_async=call.prefers_async,
    )


def unpack_call(
    request: EdgeCall,
    operation: Operation[Any, Any],
    parameters: Mapping[str, str],
    deps: Deps,
    timeout_ms: int,
) -> Call[Any, Any]:
    """Return the call that another node's edge passed on.

    Raises:
        ConflictError: The operation is not one that nodes do for each other.
        InputError: The query or the body does not fit it, as another version's might not.
    """
    if not operation.at_owner:
        text = f"{request.method[:10]} {operation.path} is for the node that was asked"
        raise ConflictError(text)
    return Call(
        deps=deps,
        tenant=Tenant(request.tenant),
        principal=request.principal,
        path=parameters,
        query=decode_query(request.query, operation.query),
        body=decode_body(request.body, operation.body),
        key=request.key or None,
        local=request.is_local,
        raw=request.body,
        timeout_ms=timeout_ms,
        prefers_async=request.prefers_async,
    )


def pack_answer(response: Response) -> EdgeAnswer:
    """Return a response as it is sent to the node that was asked."""
    return EdgeAnswer(
        status=response.status,
        media=response.media,
        headers=tuple(response.headers),
        body=response.body,
    )


def unpack_answer(answer: EdgeAnswer) -> Response:
    """Return the owner's response, for the caller."""
    return Response(
        body=answer.body,
        status=answer.status,
        media=answer.media,
        headers=list(answer.headers),
    )
