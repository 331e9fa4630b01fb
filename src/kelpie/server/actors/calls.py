"""Calls of user-defined actors by name, and the types that can be called."""

from __future__ import annotations

from typing import Any

from kelpie.core.errors import NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import INVOCATION_TIMEOUT_MS
from kelpie.server.actors.requests import Arguments
from kelpie.server.actors.responses import ActorTypeOut, ActorTypes, MethodOut
from kelpie.server.actors.submitted import submit
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing


def named_actor(call: Call[Any, Any]) -> ActorId:
    """Return the user-defined actor that the path names.

    Raises:
        NotFoundError: No user-defined type has this name; built-in types do not count.
        InvalidFieldError: The key has a character that no key may have.
    """
    kind, key = call.path["type"], call.path["key"]
    if not call.deps.actors.hosts(kind):
        raise NotFoundError("actor type", kind[:200])
    return ActorId(call.tenant, kind, key)


async def call_method(call: Call[Nothing, Arguments]) -> Response:
    """Run a command or a query and return its result once what it says is durable.

    A caller that prefers it gets 202 instead, once the command is kept. What a query answers is
    there at once, so that preference is not applied to one.
    """
    actor, method = named_actor(call), call.path["method"]
    if call.prefers_async and call.deps.actors.is_command(actor.type, method):
        return await submit(call, actor)
    result = await call.deps.actors.call(
        actor,
        method,
        call.raw,
        principal=call.principal,
        key=call.key,
        timeout_ms=call.timeout_ms or INVOCATION_TIMEOUT_MS,
    )
    return Response(body=b'{"result":' + result + b"}")


async def list_types(call: Call[Nothing, Nothing]) -> Response:
    """Return the hosted classes with the schemas of their methods."""
    shown = [
        ActorTypeOut(
            name=kind.name,
            doc=kind.doc,
            schema_version=kind.schema_version,
            methods=[
                MethodOut(
                    name=method.name,
                    kind=method.kind,
                    doc=method.doc,
                    arguments=method.arguments,
                    result=method.result,
                )
                for method in kind.methods
            ],
        )
        for kind in call.deps.actors.types()
    ]
    return json_response(ActorTypes(types=shown))
