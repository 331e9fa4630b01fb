"""Layers into one value: flags > environment > project file > user file > defaults.

Reads the files that its arguments name and nothing else. Every error names its place (file and
line, variable or flag), the key, and what would be right.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from kelpie.core.errors import ConfigError
from kelpie.core.limits import SETTINGS_FILE_BYTES_MAX
from kelpie.settings.build import build_settings
from kelpie.settings.lines import find_lines
from kelpie.settings.merge import SettingEntry, Values
from kelpie.settings.model import Layer, Origin, Settings
from kelpie.settings.schema import (
    CLIENT_VARIABLES,
    find_setting,
    flag_of,
    is_table,
    key_of_variable,
    nearest_key,
    nearest_variable,
)
from kelpie.settings.values import ValuePlace

PROJECT_FILE: Final = "kelpie.toml"


class _Source(NamedTuple):
    """One settings file in its layer."""

    layer: Layer
    path: Path
    place: ValuePlace


def load_settings(
    *,
    environment: Mapping[str, str],
    cwd: Path,
    home: Path,
    config: str | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings that all layers together say.

    Args:
        environment: The process environment, or what stands for it.
        cwd: Absolute; where ``kelpie.toml`` is looked for, and relative flags start.
        home: Absolute; what ``~`` means.
        config: A file to read in place of ``./kelpie.toml``; it must exist.
        flags: Values by dotted key, as text or as TOML values; None means not given.

    Raises:
        ConfigError: A key is unknown, a value does not fit, a secret is written out, or a file
            cannot be read; the message names the place and the key.
    """
    values = Values()
    for source in _files(environment, cwd, home, config):
        for entry in _read_file(source):
            values.put(entry)
    place = ValuePlace(base=cwd, home=home)
    notices: list[str] = []
    for variable in sorted(environment):
        if not variable.startswith("KELPIE_") or variable in CLIENT_VARIABLES:
            continue
        key = key_of_variable(variable)
        if key is None:
            nearest = nearest_variable(variable)
            notices.append(f"{variable} is not a setting and is ignored; the nearest is {nearest}")
        elif environment[variable]:
            origin = Origin(layer="environment", source=variable)
            values.put(_text_entry(key, environment[variable], origin, place))
    for key, value in (flags or {}).items():
        if value is not None:
            origin = Origin(layer="flag", source=flag_of(key))
            values.put(_text_entry(key, value, origin, place))
    return build_settings(values, environment=environment, home=home, notices=tuple(notices))


def _files(
    environment: Mapping[str, str], cwd: Path, home: Path, config: str | None
) -> Iterator[_Source]:
    """Yield the files to read, the weaker layer first."""
    base = environment.get("XDG_CONFIG_HOME", "")
    # The XDG specification has relative paths ignored.
    root = Path(base) if base.startswith("/") else home / ".config"
    user = root / "kelpie" / "config.toml"
    if user.is_file():
        yield _Source("user", user, ValuePlace(user.parent, home))
    named = config or environment.get("KELPIE_CONFIG")
    project = cwd / Path(named) if named else cwd / PROJECT_FILE
    if named or project.is_file():
        yield _Source("project", project, ValuePlace(project.parent, home))


def _read_file(source: _Source) -> Iterator[SettingEntry]:
    text = _read_text(source.path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source.path}: {error}", file=str(source.path)) from None
    lines = find_lines(text)
    for key, value in _flatten(document, source, lines):
        line = _line_of(lines, key)
        origin = Origin(layer=source.layer, source=str(source.path), line=line)
        yield _entry(key, value, origin, source.place)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(SETTINGS_FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise ConfigError(f"{path}: {reason}", file=str(path)) from None
    if len(data) > SETTINGS_FILE_BYTES_MAX:
        message = f"{path}: a settings file is at most {SETTINGS_FILE_BYTES_MAX:,} bytes"
        raise ConfigError(message, file=str(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text", file=str(path)) from None


def _flatten(
    table: dict[str, Any], source: _Source, lines: Mapping[str, int], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield the dotted keys of a document; refuses what is no setting and no table."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if find_setting(key) is not None:
            yield key, value
            continue
        origin = Origin(layer=source.layer, source=str(source.path), line=_line_of(lines, key))
        if not is_table(key):
            raise _unknown(key, origin)
        if not isinstance(value, dict):
            raise _refusal(key, origin, "must be a table")
        yield from _flatten(cast("dict[str, Any]", value), source, lines, f"{key}.")


def _line_of(lines: Mapping[str, int], key: str) -> int:
    """Return the key's line, or the line of the table it is written inside."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key, 0)


def _text_entry(key: str, value: object, origin: Origin, place: ValuePlace) -> SettingEntry:
    setting = find_setting(key)
    if setting is None:
        raise _unknown(key, origin)
    value = setting.kind.from_text(value) if isinstance(value, str) else value
    return _entry(key, value, origin, place)


def _entry(key: str, value: object, origin: Origin, place: ValuePlace) -> SettingEntry:
    setting = find_setting(key)
    assert setting is not None, "only known keys get here"
    try:
        return SettingEntry(key, setting.kind.parse(value, place), origin)
    except ValueError as error:
        raise _refusal(key, origin, str(error)) from None


def _refusal(key: str, origin: Origin, problem: str) -> ConfigError:
    where = f"{origin.source}:{origin.line}" if origin.line else origin.source
    return ConfigError(
        f"{where}: {key}: {problem}", field=key, source=origin.source, line=origin.line
    )


def _unknown(key: str, origin: Origin) -> ConfigError:
    nearest = nearest_key(key)
    where = f"{origin.source}:{origin.line}" if origin.line else origin.source
    message = f"{where}: {key} is not a setting; did you mean {nearest}?"
    return ConfigError(message, field=key, source=origin.source, line=origin.line, nearest=nearest)
