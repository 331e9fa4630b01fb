"""YAML as nodes with line numbers, from text that nobody trusts.

Never constructs a Python object from a tag. Size, depth and number of nodes are bounded before
anything is composed, and anchors are refused, so that a small text cannot become a large value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.limits import (
    PLAN_CONFIG_BYTES_MAX,
    PLAN_CONFIG_DEPTH_MAX,
    PLAN_CONFIG_NODES_MAX,
)

# The C parser where PyYAML was built with it: ten times faster, same grammar.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlPlace:
    """Where in which file a reader is, so that an error can say it."""

    file: str
    unit: str = ""

    def error(self, field: str, problem: str, node: yaml.Node | None = None) -> InvalidFieldError:
        """Return the error that names file, line, unit and field."""
        return self.error_at(field, problem, line_of(node) if node is not None else 0)

    def error_at(self, field: str, problem: str, line: int) -> InvalidFieldError:
        """Return the error for a line, counted from 1; 0 when there is none."""
        where = f"{self.file}, line {line}" if line else self.file
        name = f"units.{self.unit}.{field}".rstrip(".") if self.unit else field
        return InvalidFieldError(
            name, f"{problem} ({where})", file=self.file, line=line or None, unit=self.unit or None
        )


def line_of(node: yaml.Node) -> int:
    """Return the line a node starts on, from 1."""
    return int(node.start_mark.line) + 1


def compose_document(data: bytes, place: YamlPlace) -> yaml.Node:
    """Return the root node of the only document in ``data``.

    Raises:
        InvalidFieldError: Not UTF-8, not YAML, several documents, none, or an anchor.
        LimitExceededError: Too many bytes, nodes, or too deep.
    """
    _require_at_most("config", len(data), PLAN_CONFIG_BYTES_MAX, "bytes", place)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        problem = f"byte {error.start:,} is not UTF-8; save the file as UTF-8"
        raise place.error("config", problem) from error
    try:
        _check_events(text, place)
        node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = int(error.problem_mark.line) + 1 if error.problem_mark else 0
        raise place.error_at("config", f"is not YAML: {error.problem}", line) from error
    except yaml.YAMLError as error:
        raise place.error("config", f"is not YAML: {str(error).splitlines()[0]}") from error
    if node is None:
        raise place.error("config", "is empty; write 'version: 1' and a list of units")
    return node


def _check_events(text: str, place: YamlPlace) -> None:
    """Bound depth and size before composing, which recurses."""
    depth = 0
    events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
    for count, event in enumerate(events):
        _require_at_most("config", count, PLAN_CONFIG_NODES_MAX, "YAML events", place)
        if getattr(event, "anchor", None) is not None:
            line = int(event.start_mark.line) + 1
            raise place.error_at("config", "anchors and aliases are not accepted", line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            _require_at_most("config", depth, PLAN_CONFIG_DEPTH_MAX, "levels deep", place)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _require_at_most(field: str, actual: int, limit: int, unit: str, place: YamlPlace) -> None:
    if actual > limit:
        raise LimitExceededError(field, actual=actual, limit=limit, unit=unit, hint=place.file)


def read_mapping(
    node: yaml.Node, field: str, known: Collection[str], place: YamlPlace
) -> dict[str, yaml.Node]:
    """Return a mapping's values by key.

    Raises:
        InvalidFieldError: Not a mapping, or a key is not a string, unknown or given twice.
    """
    if not isinstance(node, yaml.MappingNode):
        raise place.error(field, f"must be a mapping with the keys {', '.join(known)}", node)
    values: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key = read_string(key_node, field, place)
        if key not in known:
            problem = f"{key[:64]!r} is no known key; known are {', '.join(known)}"
            raise place.error(field, problem, key_node)
        if key in values:
            raise place.error(field, f"the key {key!r} is given twice", key_node)
        values[key] = value
    return values


def read_items(node: yaml.Node, field: str, place: YamlPlace) -> list[yaml.Node]:
    """Return a list's items.

    Raises:
        InvalidFieldError: Not a list.
    """
    if not isinstance(node, yaml.SequenceNode):
        raise place.error(field, "must be a list", node)
    return list(node.value)


def read_string(node: yaml.Node, field: str, place: YamlPlace) -> str:
    """Return a string that can be encoded as UTF-8.

    Raises:
        InvalidFieldError: A number, date, boolean, null or collection; or a lone surrogate.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag != f"{_TAG}str":
        kind = str(node.tag).removeprefix(_TAG)
        raise place.error(field, f"must be a string, not {kind[:64]}; quote it", node)
    text = str(node.value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise place.error(
            field, "contains half a surrogate pair, which no file can", node
        ) from error
    return text


def read_choice(node: yaml.Node, field: str, choices: Collection[str], place: YamlPlace) -> str:
    """Return a string that is one of ``choices``.

    Raises:
        InvalidFieldError: It is another.
    """
    text = read_string(node, field, place)
    if text not in choices:
        problem = f"{text[:64]!r} must be one of {', '.join(choices)}"
        raise place.error(field, problem, node)
    return text


def is_integer(node: yaml.Node, value: int) -> bool:
    """Return whether a node is the plain decimal ``value``."""
    is_scalar = isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}int"
    return is_scalar and node.value == str(value)
