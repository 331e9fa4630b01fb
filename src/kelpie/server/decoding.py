"""Bytes and query strings into typed requests, with errors that name the field.

Free-form JSON (metadata, tool arguments) is bounded here too: integers to what the store holds,
nesting to a fixed depth, so that nothing deeper in the house meets a value it cannot encode.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec

from kelpie.core.errors import InvalidFieldError, LimitExceededError
from kelpie.core.limits import INTEGER_MAX, INTEGER_MIN
from kelpie.server.errors import MalformedBodyError

S = TypeVar("S", bound=msgspec.Struct)

JSON_DEPTH_MAX: Final = 64  # far beyond any honest metadata, far below the encoder's recursion
QUERY_FIELDS_MAX: Final = 64  # parameters of one request
QUERY_BYTES_MAX: Final = 16 * 1024  # ids and filters, never content

_PATH: Final = re.compile(r" - at `(?:key in )?\$\.?(?P<path>.*)`\Z")
_NAMED: Final = re.compile(r"(?:required|unknown) field `(?P<name>[^`]*)`")


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode_body(body: bytes, kind: type[S]) -> S:
    """Return ``body`` as ``kind``; an empty body counts as an empty object.

    Raises:
        MalformedBodyError: It is not JSON in UTF-8, or is nested too deeply.
        InvalidFieldError: A field is missing, unknown or of another type.
    """
    try:
        decoded: S = _decoder(kind).decode(body or b"{}")
    except msgspec.ValidationError as error:
        raise _invalid_field(error, "body") from None
    except msgspec.DecodeError as error:
        raise MalformedBodyError(str(error)) from None
    except UnicodeDecodeError as error:
        problem = f"invalid UTF-8 at byte {error.start} of a text"
        raise MalformedBodyError(problem) from None
    except RecursionError:
        raise MalformedBodyError(f"nested deeper than {JSON_DEPTH_MAX} levels") from None
    return decoded


def decode_query(text: bytes, kind: type[S]) -> S:
    """Return a query string as ``kind``.

    A list parameter may be repeated or separated by commas; a trailing ``[]`` is part of neither.

    Raises:
        InvalidFieldError: A parameter is unknown, repeated or of another type.
        LimitExceededError: The query string is too long.
    """
    if not text:
        empty: S = _empty(kind)
        return empty
    if len(text) > QUERY_BYTES_MAX:
        raise LimitExceededError("query", actual=len(text), limit=QUERY_BYTES_MAX, unit="bytes")
    try:
        pairs = parse_qsl(
            text.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=QUERY_FIELDS_MAX,
            errors="strict",
        )
    except ValueError as error:
        raise InvalidFieldError("query", f"cannot be read: {error}") from None
    lists = _list_fields(kind)
    values: dict[str, str | list[str]] = {}
    for raw_name, value in pairs:
        name = raw_name.removesuffix("[]")
        if name in lists:
            items = cast("list[str]", values.setdefault(name, []))
            items.extend(item for item in value.split(",") if item)
        elif name in values:
            raise InvalidFieldError(f"query.{name}", "is given twice")
        else:
            values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid_field(error, "query") from None


def require_storable(field: str, value: object, *, depth: int = 0) -> None:
    """Check free-form JSON against what the store can hold.

    Raises:
        InvalidFieldError: An integer is out of bounds, or the nesting too deep.
    """
    if depth > JSON_DEPTH_MAX:
        raise InvalidFieldError(field, f"is nested deeper than {JSON_DEPTH_MAX} levels")
    if isinstance(value, int):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise InvalidFieldError(field, "is an integer outside 64 signed bits")
    elif isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            require_storable(f"{field}.{key[:64]}", item, depth=depth + 1)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            require_storable(f"{field}[]", item, depth=depth + 1)


def _invalid_field(error: msgspec.ValidationError, source: str) -> InvalidFieldError:
    text = str(error)
    at = _PATH.search(text)
    parts = [source]
    if at is not None and at["path"]:
        parts.append(at["path"])
        text = text[: at.start()]
    named = _NAMED.search(text)
    if named is not None:
        parts.append(named["name"])
    return InvalidFieldError(".".join(parts), text)


@cache
def _list_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    names: list[str] = []
    for field in msgspec.structs.fields(kind):
        schema = msgspec.json.schema(field.type)
        options = schema.get("anyOf", [schema])
        if any(option.get("type") == "array" for option in options):
            names.append(field.encode_name)
    return frozenset(names)


@cache
def _empty(kind: Any) -> Any:
    return msgspec.convert({}, kind)
