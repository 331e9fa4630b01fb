"""Settings back into TOML: what `load_settings` reads as the same settings, wherever it lies.

Paths come out absolute, secrets as references, and a database's address without its password.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kelpie.core.dsn import Dsn
from kelpie.settings.model import Settings
from kelpie.settings.schema import PROVIDER_SETTINGS, SETTINGS
from kelpie.settings.secret import SecretRef

Value = str | int | Path | Dsn | SecretRef | tuple[Path | SecretRef, ...]
"""What a setting's value can be."""

Plain = str | int | bool | list[str]
"""What TOML and JSON both have."""


def list_values(settings: Settings) -> Iterator[tuple[str, Value]]:
    """Yield every dotted key with its value, providers last; a key without a value is left out."""
    for setting in SETTINGS:
        value: Any = settings
        for part in setting.key.split("."):
            value = getattr(value, part)
        if value is not None:
            yield setting.key, value
    for provider in settings.providers:
        for setting in PROVIDER_SETTINGS:
            value = getattr(provider, setting.key)
            if value is not None:
                yield f"providers.{provider.name}.{setting.key}", value


def plain_value(value: Value) -> Plain:
    """Return a setting's value as TOML and JSON have it."""
    match value:
        case bool() | int():
            return value
        case tuple():
            return [str(item) for item in value]
        case _:
            return str(value)


def dump_toml(settings: Settings) -> str:
    """Return the whole of ``settings`` as a TOML document.

    Raises:
        ValueError: A path is not UTF-8 text.
    """
    tables: dict[str, list[str]] = {"": []}
    for key, value in list_values(settings):
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {_literal(plain_value(value))}")
    blocks = ("\n".join([f"[{table}]"] * bool(table) + rows) for table, rows in tables.items())
    return "\n\n".join(blocks) + "\n"


def _literal(value: Plain) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case list():
            return "[" + ", ".join(_literal(item) for item in value) + "]"
        case _:
            return _quote(value)


def _quote(text: str) -> str:
    text.encode()
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character < " " or character == "\x7f":
        return f"\\u{ord(character):04x}"
    return character
