"""The address of a database, which may hold a password: shown without it, always.

Invariant: neither `str` nor `repr` of a `Dsn` contains its password; ``text`` does, and goes to the
driver alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

HIDDEN: Final = "***"
SCHEMES: Final = ("postgresql", "postgres")
_USER_INFO: Final = re.compile(r"(?<=://)([^/?#@:]*):[^/?#]*@")
_PARAMETER: Final = re.compile(r"([?&][^=&]*password[^=&]*=)[^&#]*", re.IGNORECASE)


class DsnError(ValueError):
    """A text is no address of a database; the message continues "KEY ..." and never repeats it."""


@dataclass(frozen=True, slots=True)
class Dsn:
    """A database's address: ``postgresql://user@host:port/database``."""

    text: str = field(repr=False)
    shown: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shown", hide_password(self.text))

    def __str__(self) -> str:
        return self.shown


def is_dsn(text: str) -> bool:
    """Return whether ``text`` means to be a database's address rather than a path."""
    return text.partition("://")[0].lower() in SCHEMES and "://" in text


def parse_dsn(text: str) -> Dsn:
    """Return the address that ``text`` writes.

    Raises:
        DsnError: It is none. The message does not repeat it, since a password may be in it.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise DsnError("has a host or port that cannot be read") from None
    if parts.scheme not in SCHEMES:
        raise DsnError("must begin with postgresql://")
    if any(character <= " " or character == "\x7f" for character in text) or port == 0:
        raise DsnError("must be an address without white space, written %20")
    if parts.fragment or text.endswith("#"):
        raise DsnError("must not carry a fragment; write # in a password as %23")
    if not parts.path.strip("/"):
        raise DsnError("must name a database, as in postgresql://host/kelpie")
    return Dsn(text)


def hide_password(text: str) -> str:
    """Return ``text`` with the password of every address in it replaced."""
    text = _USER_INFO.sub(rf"\1:{HIDDEN}@", text)
    return _PARAMETER.sub(rf"\1{HIDDEN}", text)
