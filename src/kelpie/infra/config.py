"""Desired state, read from a YAML workspace.

Owns the `Loader` protocol, so that another language can stand beside YAML, and the YAML loader.
Never touches the target. What it returns is valid: ids and paths are unique, every dependency
exists, nothing contradicts itself, and the units can be ordered.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, cast

import yaml

from kelpie.core import limits
from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.quoting import quote_text
from kelpie.infra.graph import CycleFoundError, Vertex, order_units
from kelpie.infra.paths import find_path_problem, list_ancestors
from kelpie.infra.yaml_nodes import (
    YamlPlace,
    compose_document,
    is_integer,
    line_of,
    read_choice,
    read_items,
    read_mapping,
    read_string,
)

UnitType = Literal["linux.file", "linux.dir"]

_TYPES: Final = ("linux.file", "linux.dir")
_STATES: Final = ("present", "absent")
_ROOT_KEYS: Final = ("version", "units")
_UNIT_KEYS: Final = (*("id", "type", "path", "content", "source", "mode", "state", "depends_on"),)
_UNIT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_MODE: Final = re.compile(r"0?[0-7]{3}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """What one unit should be.

    ``content`` is the whole content of a present file, None otherwise. ``mode`` None leaves the
    permission bits as they are. ``line`` is where the unit starts in its file, 0 if unknown.
    """

    unit_id: str
    type: UnitType
    path: str
    content: bytes | None = None
    mode: int | None = None
    is_present: bool = True
    depends_on: tuple[str, ...] = ()
    line: int = 0

    @property
    def vertex(self) -> Vertex:
        """The unit as the order sees it."""
        is_directory = self.type == "linux.dir"
        return Vertex(self.unit_id, self.path, is_directory, self.is_present, self.depends_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Everything one workspace asks for; ``source`` names the file it came from."""

    source: str
    units: tuple[UnitSpec, ...]


class Loader(Protocol):
    """Reads desired state in one configuration language."""

    def load(self, path: Path) -> Desired:
        """Return the valid desired state of the file at ``path`` and the files beside it.

        Raises:
            InvalidFieldError: Something is wrong; names file, line, unit and field.
            LimitExceededError: Something is too large.
        """
        ...

    def load_text(self, text: str, *, name: str) -> Desired:
        """Return the valid desired state of a text that has no files beside it.

        Raises:
            InvalidFieldError: As for `load`; a unit with a ``source`` is refused.
            LimitExceededError: Something is too large.
        """
        ...


class YamlLoader:
    """The loader for YAML workspaces, ``version: 1``; see docs/reference/workspace-yaml.md."""

    def load(self, path: Path) -> Desired:
        """Return the valid desired state of the file at ``path`` and the files beside it.

        Raises:
            InvalidFieldError: Something is wrong; names file, line, unit and field.
            LimitExceededError: Something is too large.
        """
        place = YamlPlace(file=path.name)
        try:
            data = _read_regular_file(path, limits.PLAN_CONFIG_BYTES_MAX)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
            raise place.error("config", problem) from error
        return _read_workspace(data, place, path.parent)

    def load_text(self, text: str, *, name: str) -> Desired:
        """Return the valid desired state of a text that has no files beside it.

        Raises:
            InvalidFieldError: As for `load`; a unit with a ``source`` is refused.
            LimitExceededError: Something is too large.
        """
        # A lone surrogate becomes bytes that the decoder refuses with its position.
        return _read_workspace(text.encode(errors="surrogatepass"), YamlPlace(file=name), None)


def _read_workspace(data: bytes, place: YamlPlace, folder: Path | None) -> Desired:
    values = read_mapping(compose_document(data, place), "config", _ROOT_KEYS, place)
    if "version" not in values or not is_integer(values["version"], 1):
        raise place.error("version", "must be 1", values.get("version"))
    if "units" not in values:
        raise place.error("units", "is missing; an empty workspace has 'units: []'")
    nodes = read_items(values["units"], "units", place)
    if len(nodes) > limits.PLAN_UNITS_MAX:
        raise LimitExceededError(
            "units", actual=len(nodes), limit=limits.PLAN_UNITS_MAX, unit="units", hint=place.file
        )
    units = [_read_unit(node, index, place, folder) for index, node in enumerate(nodes)]
    _check_total(units, place)
    check_units(units, place.file)
    return Desired(source=place.file, units=tuple(units))


def _read_unit(node: yaml.Node, index: int, place: YamlPlace, folder: Path | None) -> UnitSpec:
    values = read_mapping(node, f"units[{index}]", _UNIT_KEYS, place)
    for key in ("id", "type", "path"):
        if key not in values:
            raise place.error(f"units[{index}].{key}", "is missing", node)
    unit_id = read_string(values["id"], f"units[{index}].id", place)
    if not _UNIT_ID.match(unit_id) or len(unit_id) > limits.NAME_CHARS_MAX:
        problem = f"{unit_id[:64]!r} must be up to {limits.NAME_CHARS_MAX} of A-Z a-z 0-9 . _ -"
        raise place.error(f"units[{index}].id", problem, values["id"])
    place = YamlPlace(file=place.file, unit=unit_id)
    unit_type = cast("UnitType", read_choice(values["type"], "type", _TYPES, place))
    state = read_choice(values["state"], "state", _STATES, place) if "state" in values else ""
    is_present = state != "absent"
    _check_combination(values, place, has_content=is_present and unit_type == "linux.file")
    if not is_present and "mode" in values:
        raise place.error("mode", "makes no sense for an absent unit", values["mode"])
    return UnitSpec(
        unit_id=unit_id,
        type=unit_type,
        path=_read_path(values["path"], "path", place),
        content=_read_content(values, place, folder),
        mode=_read_mode(values.get("mode"), place),
        is_present=is_present,
        depends_on=_read_dependencies(values.get("depends_on"), place),
        line=line_of(node),
    )


def _check_combination(
    values: dict[str, yaml.Node], place: YamlPlace, *, has_content: bool
) -> None:
    given = [key for key in ("content", "source") if key in values]
    if has_content and len(given) != 1:
        problem = "a present file needs either content or source, and only one of them"
        raise place.error("content", problem, values["path"])
    if not has_content and given:
        raise place.error(given[0], "only a present file has it", values[given[0]])


def _read_path(node: yaml.Node, field: str, place: YamlPlace) -> str:
    path = read_string(node, field, place)
    problem = find_path_problem(path)
    if problem:
        raise place.error(field, f"{quote_text(path)} {problem}", node)
    return path


def _read_mode(node: yaml.Node | None, place: YamlPlace) -> int | None:
    if node is None:
        return None
    text = read_string(node, "mode", place)
    if not _MODE.match(text):
        problem = f'{text[:64]!r} must be three octal digits in quotes, such as "0644"'
        raise place.error("mode", problem, node)
    return int(text, 8)


def _read_dependencies(node: yaml.Node | None, place: YamlPlace) -> tuple[str, ...]:
    if node is None:
        return ()
    names: dict[str, None] = {}
    for item in read_items(node, "depends_on", place):
        name = read_string(item, "depends_on", place)
        if name in names:
            raise place.error("depends_on", f"{name[:64]!r} is given twice", item)
        names[name] = None
    return tuple(names)


def _read_content(
    values: dict[str, yaml.Node], place: YamlPlace, folder: Path | None
) -> bytes | None:
    if "content" in values:
        return read_string(values["content"], "content", place).encode()
    if "source" not in values:
        return None
    node = values["source"]
    source = _read_path(node, "source", place)
    if folder is None:
        raise place.error("source", "needs a workspace file on disk; use content", node)
    try:
        home = folder.resolve(strict=True)
        path = (home / source).resolve(strict=True)
        if not path.is_relative_to(home):
            raise place.error("source", f"{source!r} leads out of the workspace's folder", node)
        return _read_regular_file(path, limits.WORKSPACE_FILE_BYTES_MAX)
    except (OSError, RuntimeError) as error:
        # Path.resolve reports a loop of links as RuntimeError before Python 3.13.
        reason = getattr(error, "strerror", None) or str(error)
        raise place.error("source", f"{source!r} cannot be read: {reason}", node) from error


def _read_regular_file(path: Path, bytes_max: int) -> bytes:
    """Return a file's content; a pipe or a device is an error instead of a wait."""
    # The caller has resolved links where that matters; O_NONBLOCK opens a pipe without a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            message = "not a regular file"
            raise OSError(None, message)
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        size = max(len(data), status.st_size)
        raise LimitExceededError(path.name, actual=size, limit=bytes_max, unit="bytes")
    return data


def _check_total(units: Iterable[UnitSpec], place: YamlPlace) -> None:
    total = sum(len(unit.content or b"") for unit in units)
    if total > limits.PLAN_CONTENT_BYTES_MAX:
        raise LimitExceededError(
            "units.content",
            actual=total,
            limit=limits.PLAN_CONTENT_BYTES_MAX,
            unit="bytes",
            hint=f"split {place.file} into several workspaces",
        )


def check_units(units: Iterable[UnitSpec], file: str) -> None:
    """Check that units fit together, whatever language they were written in.

    Raises:
        InvalidFieldError: A duplicate id or path, a missing dependency, a unit below a file or
            below an absent directory, or a cycle.
    """
    by_id: dict[str, UnitSpec] = {}
    by_path: dict[str, UnitSpec] = {}
    for unit in units:
        for field, key, seen in (("id", unit.unit_id, by_id), ("path", unit.path, by_path)):
            if key in seen:
                other = seen[key]
                problem = f"{key!r} is taken by the unit {other.unit_id!r} on line {other.line}"
                raise _error(file, unit, field, problem)
            seen[key] = unit
    for unit in by_id.values():
        _check_relations(unit, by_id, by_path, file)
    try:
        order_units(unit.vertex for unit in by_id.values())
    except CycleFoundError as error:
        first = by_id[error.unit_ids[0]]
        raise _error(file, first, "depends_on", f"is part of a cycle: {error}") from error


def _check_relations(
    unit: UnitSpec, by_id: dict[str, UnitSpec], by_path: dict[str, UnitSpec], file: str
) -> None:
    for dependency in unit.depends_on:
        if dependency not in by_id:
            raise _error(file, unit, "depends_on", f"there is no unit {dependency[:64]!r}")
    for path in list_ancestors(unit.path):
        above = by_path.get(path)
        if above is None:
            continue
        if above.type == "linux.file":
            raise _error(file, unit, "path", f"lies below the file of the unit {above.unit_id!r}")
        if unit.is_present and not above.is_present:
            problem = f"lies in a directory that the unit {above.unit_id!r} removes"
            raise _error(file, unit, "path", problem)


def _error(file: str, unit: UnitSpec, field: str, problem: str) -> InvalidFieldError:
    return YamlPlace(file=file, unit=unit.unit_id).error_at(field, problem, unit.line)
