"""Finds the operation of a path in as many steps as it has segments.

A trailing slash makes no difference. A literal segment goes before a parameter. Paths come in as
received (percent-encoded), so that an encoded slash stays inside its segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

from kelpie.core.errors import InvalidFieldError
from kelpie.server.errors import MethodNotAllowedError, RouteNotFoundError
from kelpie.server.operations import Operation


@dataclass(slots=True)
class _Node:
    children: dict[str, _Node] = field(default_factory=dict[str, "_Node"])
    parameter: str = ""
    child: _Node | None = None
    operations: dict[str, Operation[Any, Any]] = field(
        default_factory=dict[str, Operation[Any, Any]]
    )


class Route(NamedTuple):
    """An operation and its path parameters."""

    operation: Operation[Any, Any]
    parameters: dict[str, str]


class Router:
    """The operations of one table by method and path."""

    def __init__(self, operations: Iterable[Operation[Any, Any]]) -> None:
        self._root = _Node()
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation[Any, Any]) -> None:
        assert operation.path.startswith("/"), operation.path
        assert not operation.path.endswith("/"), operation.path
        node = self._root
        for segment in operation.path[1:].split("/"):
            if segment.startswith("{"):
                name = segment[1:-1]
                assert node.parameter in {"", name}, f"two names for one segment: {operation.path}"
                node.parameter = name
                node.child = node.child or _Node()
                node = node.child
            else:
                node = node.children.setdefault(segment, _Node())
        assert operation.method not in node.operations, f"declared twice: {operation.path}"
        node.operations[operation.method] = operation

    def find(self, method: str, path: str) -> Route:
        """Return the operation for a method and a percent-encoded path.

        Raises:
            RouteNotFoundError: No operation has this path.
            MethodNotAllowedError: The path has operations, this method has none.
            InvalidFieldError: A parameter is not UTF-8.
        """
        node = self._root
        parameters: dict[str, str] = {}
        trimmed = path[1:-1] if path.endswith("/") else path[1:]
        for segment in trimmed.split("/"):
            following = node.children.get(segment)
            if following is None:
                following = node.child
                if following is None or not segment:
                    raise RouteNotFoundError(path)
                parameters[node.parameter] = _decode(node.parameter, segment)
            node = following
        operation = node.operations.get("GET" if method == "HEAD" else method)
        if operation is not None:
            return Route(operation, parameters)
        if not node.operations:
            raise RouteNotFoundError(path)
        raise MethodNotAllowedError(method, path, _allowed(node))


def _allowed(node: _Node) -> str:
    methods = set(node.operations)
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))


def _decode(name: str, segment: str) -> str:
    if "%" not in segment:
        return segment
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise InvalidFieldError(f"path.{name}", "is not percent-encoded UTF-8") from None
