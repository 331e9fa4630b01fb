"""The table of operations: every route there is."""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.server.actors.table import actor_operations
from kelpie.server.docs import POLICY
from kelpie.server.http import Response
from kelpie.server.letta.table import letta_operations
from kelpie.server.operations import Call, Nothing, Operation
from kelpie.server.ops.table import own_operations

Table = tuple[Operation[Any, Any], ...]


def operations() -> Table:
    """Return every operation but the documentation's own."""
    return (*letta_operations(), *own_operations(), *actor_operations())


def documentation(document: dict[str, Any], page: bytes) -> Table:
    """Return the operations that serve the OpenAPI document and its page."""
    encoded = msgspec.json.encode(document)

    async def serve_document(_: Call[Nothing, Nothing]) -> Response:
        return Response(body=encoded)

    async def serve_page(_: Call[Nothing, Nothing]) -> Response:
        headers = [(b"content-security-policy", POLICY)]
        return Response(body=page, media=b"text/html; charset=utf-8", headers=headers)

    shown = (
        ("/openapi.json", "The OpenAPI document", serve_document, "application/json"),
        ("/docs", "The documentation of this API", serve_page, "text/html"),
    )
    return tuple(
        Operation(
            method="GET",
            path=path,
            summary=summary,
            tag="service",
            handler=handler,
            query=Nothing,
            body=Nothing,
            media=media,
            public=True,
            while_draining=True,
        )
        for path, summary, handler, media in shown
    )
