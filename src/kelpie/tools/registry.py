"""The set of tools a process offers, and the one place where a call's arguments are checked.

Owns: names, definitions, compiled schemas. Must never run a tool. Invariant: a tool whose ``begin``
is called has arguments that keep its schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, cast

import jsonschema_rs
import msgspec

from kelpie.core.errors import ConflictError, InvalidFieldError, NotFoundError
from kelpie.core.limits import NAME_CHARS_MAX
from kelpie.llm.model import ToolCall, ToolSchema
from kelpie.tools.model import Tool

_PROBLEMS_SHOWN: Final = 3
_PROBLEM_CHARS_MAX: Final = 300


class ToolRegistry:
    """Tools by name.

    Raises:
        ConflictError: Two tools have one name.
    """

    __slots__ = ("_tools", "_validators")

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        self._validators: dict[str, jsonschema_rs.Validator] = {}
        for tool in tools:
            if tool.name in self._tools:
                raise ConflictError(f"two tools are called {tool.name!r}", tool=tool.name)
            self._tools[tool.name] = tool
            self._validators[tool.name] = jsonschema_rs.validator_for(tool.parameters)
        assert self._tools.keys() == self._validators.keys(), "every tool has its validator"

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def get(self, name: str) -> Tool:
        """Return the tool of this name.

        Raises:
            NotFoundError: There is none.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise NotFoundError("tool", name[:NAME_CHARS_MAX])
        return tool

    def schemas(self, names: Sequence[str]) -> tuple[ToolSchema, ...]:
        """Return the schemas of these tools as a model wants them.

        Raises:
            NotFoundError: A name is unknown.
        """
        tools = [self.get(name) for name in names]
        return tuple(
            ToolSchema(name=tool.name, description=tool.description, parameters=tool.parameters)
            for tool in tools
        )

    def parse(self, call: ToolCall) -> dict[str, Any]:
        """Return a call's arguments, parsed and checked; no text means no arguments.

        Raises:
            NotFoundError: The tool does not exist.
            InvalidFieldError: The arguments are no JSON object, or break the tool's schema.
        """
        tool = self.get(call.name)
        arguments = _parse_object(call.arguments)
        errors = self._validators[tool.name].iter_errors(arguments)
        problems = [_describe(error) for error in islice(errors, _PROBLEMS_SHOWN)]
        if problems:
            raise InvalidFieldError("arguments", "; ".join(problems), tool=tool.name)
        return arguments


def _parse_object(text: str) -> dict[str, Any]:
    value: Any = {}
    try:
        if text.strip():
            value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        problem = f"not valid JSON ({error}); write one JSON object"
        raise InvalidFieldError("arguments", problem) from error
    if not isinstance(value, dict):
        raise InvalidFieldError("arguments", "must be one JSON object")
    return cast("dict[str, Any]", value)


def _describe(error: jsonschema_rs.ValidationError) -> str:
    path = ".".join(str(part) for part in error.instance_path)
    message = error.message[:_PROBLEM_CHARS_MAX]
    return f"{path}: {message}" if path else message
