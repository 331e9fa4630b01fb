"""The kinds of value a setting can have: what they accept from TOML and from text.

A kind turns a TOML value into the domain's, or raises ``ValueError`` with a clause that continues
"KEY ...": the loader adds the place and the key. ``from_text`` reads a variable or a flag first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

from kelpie.core.dsn import Dsn, is_dsn, parse_dsn
from kelpie.core.limits import INTEGER_MAX, NAME_CHARS_MAX, PATH_BYTES_MAX
from kelpie.core.quoting import quote_text
from kelpie.settings.secret import SecretRef, expand_path, parse_secret

_HOST: Final = re.compile(r"[A-Za-z0-9.:_-]{1,253}\Z")
_NODE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_HANDLE: Final = re.compile(r"[a-z0-9-]+/[^\s\x00-\x1f\x7f]+\Z")


class UnfitValueError(ValueError):
    """A value is not of its setting's kind; the message continues "KEY ..."."""


class ValuePlace(NamedTuple):
    """What relative paths in a value start from."""

    base: Path
    home: Path


class ValueKind(Protocol):
    """One kind of value."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def from_text(self, text: str) -> object:
        """Return the TOML value that a variable's or a flag's text stands for."""
        ...

    def parse(self, value: object, place: ValuePlace) -> Any:
        """Return the domain's value.

        Raises:
            ValueError: The value does not fit; the message continues "KEY ...".
        """
        ...


class _Text:
    """Common part of the kinds whose TOML value is a string."""

    name = "string"

    def from_text(self, text: str) -> object:
        """Return the text."""
        return text


class Choice(_Text):
    """One of a few words."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.name = "one of " + ", ".join(f'"{word}"' for word in words)

    def parse(self, value: object, place: ValuePlace) -> str:  # noqa: ARG002 - no path in it
        """Return the word."""
        text = _require_text(value)
        if text not in self.words:
            listed = ", ".join(self.words)
            raise UnfitValueError(f"must be one of {listed}, not {_quote(text)}")
        return text


class Integer:
    """A whole number within bounds, both included."""

    def __init__(self, *, least: int, most: int = INTEGER_MAX) -> None:
        self.least, self.most = least, most
        self.name = f"integer, {least} to {most}"

    def from_text(self, text: str) -> object:
        """Return the number, or the text where it is none."""
        return int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else text

    def parse(self, value: object, place: ValuePlace) -> int:  # noqa: ARG002 - no path in it
        """Return the number."""
        if not isinstance(value, int) or isinstance(value, bool):
            shown = quote_text(value) if isinstance(value, str) else _describe(value)
            raise UnfitValueError(f"must be a whole number, not {shown}")
        if not self.least <= value <= self.most:
            raise UnfitValueError(f"must be from {self.least} to {self.most}, not {value}")
        return value


class Flag:
    """True or false."""

    name = "boolean"

    def from_text(self, text: str) -> object:
        """Return the truth value, or the text where it is none."""
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)

    def parse(self, value: object, place: ValuePlace) -> bool:  # noqa: ARG002 - no path in it
        """Return the truth value."""
        if not isinstance(value, bool):
            raise UnfitValueError(f"must be true or false, not {_describe(value)}")
        return value


class Host(_Text):
    """An address or a name to listen on."""

    name = "address"

    def parse(self, value: object, place: ValuePlace) -> str:  # noqa: ARG002 - no path in it
        """Return the address."""
        text = _require_text(value)
        if not _HOST.match(text):
            raise UnfitValueError(f"must be an address or a host name, not {_quote(text)}")
        return text


class Url(_Text):
    """An ``http`` or ``https`` address without a user, a query or a fragment."""

    name = "URL"

    def __init__(self, *, optional: bool) -> None:
        self.optional = optional

    def parse(self, value: object, place: ValuePlace) -> str:  # noqa: ARG002 - no path in it
        """Return the address without a slash at its end."""
        text = _require_text(value)
        return parse_url(text) if text or not self.optional else ""


class Handle(_Text):
    """A model's handle, ``provider/name``; empty for none."""

    name = "`provider/name`"

    def parse(self, value: object, place: ValuePlace) -> str:  # noqa: ARG002 - no path in it
        """Return the handle."""
        text = _require_text(value)
        if text and (len(text) > NAME_CHARS_MAX or not _HANDLE.match(text)):
            raise UnfitValueError(f"must read provider/name, not {_quote(text)}")
        return text


class PathValue(_Text):
    """A file or directory; relative to the file that names it, else to where Kelpie runs."""

    name = "path"

    def parse(self, value: object, place: ValuePlace) -> Path:
        """Return the absolute path."""
        text = _require_text(value)
        if not text or "\x00" in text or len(text.encode()) > PATH_BYTES_MAX:
            raise UnfitValueError(f"must be a path of 1 to {PATH_BYTES_MAX:,} bytes")
        return expand_path(text, base=place.base, home=place.home)


class NodeName(_Text):
    """A node's name."""

    name = "name of a node"

    def parse(self, value: object, place: ValuePlace) -> str:  # noqa: ARG002 - no path in it
        """Return the name."""
        text = _require_text(value)
        if not _NODE.match(text):
            raise UnfitValueError("must be 1 to 64 letters, digits, - or _")
        return text


class PeerAddress(_Text):
    """Where a node is: a host and a port."""

    name = "host:port"

    def parse(self, value: object, place: ValuePlace) -> str:  # noqa: ARG002 - no path in it
        """Return the address."""
        text = _require_text(value)
        host, colon, port = text.rpartition(":")
        is_port = port.isascii() and port.isdigit() and int(port) < 1 << 16
        if not (colon and is_port and _HOST.match(host.removeprefix("[").removesuffix("]"))):
            raise UnfitValueError(f"must read host:port, not {_quote(text)}")
        return text


class StoreAddress(_Text):
    """Where a store is: a path, ``sqlite:`` and a path, or a database's address."""

    name = "path or `postgresql://` address"

    def parse(self, value: object, place: ValuePlace) -> Path | Dsn:
        """Return the absolute path, or the address."""
        text = _require_text(value)
        if is_dsn(text):
            return parse_dsn(text)
        path = text.removeprefix("sqlite:")
        if "://" in path:
            # Not repeated: whoever mistyped the scheme may have written a password.
            raise UnfitValueError("must be a path, sqlite:PATH, or begin with postgresql://")
        return PathValue().parse(path, place)


class PathList:
    """Paths; a variable separates them by colons."""

    name = "list of paths"

    def from_text(self, text: str) -> object:
        """Return the parts between colons."""
        return [part for part in text.split(":") if part]

    def parse(self, value: object, place: ValuePlace) -> tuple[Path, ...]:
        """Return the absolute paths."""
        return tuple(PathValue().parse(item, place) for item in _require_list(value))


class Secret(_Text):
    """A secret's reference, never its text."""

    name = "secret reference"

    def parse(self, value: object, place: ValuePlace) -> SecretRef:
        """Return the reference."""
        if not isinstance(value, str):
            raise UnfitValueError("must be a secret's reference, env:NAME or file:path")
        return parse_secret(value, base=place.base, home=place.home)


class SecretList:
    """Secrets' references; a variable separates them by commas."""

    name = "list of secret references"

    def from_text(self, text: str) -> object:
        """Return the parts between commas."""
        return [part.strip() for part in text.split(",") if part.strip()]

    def parse(self, value: object, place: ValuePlace) -> tuple[SecretRef, ...]:
        """Return the references."""
        return tuple(Secret().parse(item, place) for item in _require_list(value))


def _require_text(value: object) -> str:
    if not isinstance(value, str):
        raise UnfitValueError(f"must be a string, not {_describe(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnfitValueError("must be UTF-8 text") from None
    return value


def _require_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise UnfitValueError(f"must be a list, not {_describe(value)}")
    return list(cast("list[object]", value))


def parse_url(text: str) -> str:
    """Return an ``http`` or ``https`` address without a slash at its end.

    Raises:
        ValueError: It is none, or carries a user, a query or a fragment.
    """
    try:
        parts = urlsplit(text)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname)
        sound = sound and (parts.port is None or parts.port > 0)
    except ValueError:
        raise UnfitValueError("must be an http or https address") from None
    if not sound or any(character <= " " or character == "\x7f" for character in text):
        raise UnfitValueError("must be an http or https address")
    if parts.username is not None or parts.password is not None:
        raise UnfitValueError("must not carry a user or a password; give the key as a reference")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise UnfitValueError("must not carry a query or a fragment")
    return text.rstrip("/")


def _describe(value: object) -> str:
    names: dict[type, str] = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a fraction",
    }
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


def _quote(text: str) -> str:
    return quote_text(text)
