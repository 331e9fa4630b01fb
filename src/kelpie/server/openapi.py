"""The OpenAPI 3.1 document, from the table of operations alone.

Source: OpenAPI Specification 3.1.1; schemas are JSON Schema 2020-12 as msgspec writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kelpie.server.errors import http_status
from kelpie.server.operations import Nothing, Operation

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_REF: Final = "#/components/schemas/{name}"
_EVENTS: Final = "text/event-stream"
_COMMON_ERRORS: Final = {
    "400": "The request cannot be read.",
    "401": "No API key, or a wrong one.",
    "422": "A field is wrong; the body names it.",
    "503": "Try again: the server is draining, or its store is busy.",
}
_ERROR_SCHEMA: Final = {
    "type": "object",
    "title": "Error",
    "required": ["error", "detail"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "fields", "retriable"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "fields": {"type": "object"},
                "retriable": {"type": "boolean"},
            },
        },
        "detail": {},
    },
}


def describe(operations: Sequence[Operation[Any, Any]], *, version: str) -> dict[str, Any]:
    """Return the document for ``operations``."""
    types = [kind for operation in operations for kind in _types(operation)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    described = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        own = {kind: next(described) for kind in _roles(operation)}
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, own, components
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kelpie",
            "version": version,
            "description": "Durable, contained, accountable agents.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _roles(operation: Operation[Any, Any]) -> list[str]:
    roles: list[str] = []
    if operation.query is not Nothing:
        roles.append("query")
    if operation.body is not Nothing:
        roles.append("body")
    if operation.response is not None:
        roles.append("response")
    if operation.accepted is not None:
        roles.append("accepted")
    return roles


def _types(operation: Operation[Any, Any]) -> list[Any]:
    return [getattr(operation, role) for role in _roles(operation)]


def _operation(
    operation: Operation[Any, Any], own: dict[str, Any], components: dict[str, Any]
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "operationId": _operation_id(operation),
        "parameters": [*_path_parameters(operation), *_query_parameters(own, components)],
        "responses": _responses(operation, own),
    }
    if "body" in own:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": own["body"]}},
        }
    if not operation.public:
        described["security"] = [{"key": []}, {}]
    return described


def _operation_id(operation: Operation[Any, Any]) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", operation.path.lower()).strip("_")
    return f"{operation.method.lower()}_{words}"


def _path_parameters(operation: Operation[Any, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(operation.path)
    ]


def _query_parameters(own: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    if "query" not in own:
        return []
    name = str(own["query"]["$ref"]).rpartition("/")[2]
    described = components[name]
    required = set(described.get("required", ()))
    return [
        {"name": field, "in": "query", "required": field in required, "schema": schema}
        for field, schema in described["properties"].items()
    ]


def _responses(operation: Operation[Any, Any], own: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if "response" in own:
        content["application/json"] = {"schema": own["response"]}
    elif operation.media != _EVENTS:
        content[operation.media] = {"schema": {"type": "string"}}
    if operation.streams:
        content[_EVENTS] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": operation.summary, "content": content}}
    if "accepted" in own:
        kept = {"application/json": {"schema": own["accepted"]}}
        text = "Kept, for a caller that prefers respond-async; Location says where to ask."
        responses["202"] = {"description": text, "content": kept}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    statuses = dict(_COMMON_ERRORS)
    for code in operation.errors:
        statuses.setdefault(str(http_status(code)), code.replace("_", " ").capitalize() + ".")
    for status, text in sorted(statuses.items()):
        responses[status] = {"description": text, "content": error}
    return responses
