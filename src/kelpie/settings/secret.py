"""Secrets as references: where a secret is, never what it is.

Invariant: no settings value, error message or representation contains a secret's text; `resolve`
is the only way to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kelpie.core.errors import ConfigError
from kelpie.core.limits import SECRET_BYTES_MAX

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Where to find one secret: a variable of the environment, or a file.

    A file's target is an absolute path.
    """

    source: Literal["env", "file"]
    target: str

    def __str__(self) -> str:
        return f"{self.source}:{self.target}"

    def resolve(self, environment: Mapping[str, str], *, field: str) -> str:
        """Return the secret's text, without surrounding white space; never empty.

        Raises:
            ConfigError: The variable is unset or empty, or the file cannot be read; the message
                names ``field`` and the reference.
        """
        text = environment.get(self.target, "") if self.source == "env" else self._read(field)
        if text.strip():
            return text.strip()
        problem = "is not set" if self.source == "env" else "is empty"
        raise ConfigError(f"{field}: {self} {problem}", field=field, reference=str(self))

    def _read(self, field: str) -> str:
        try:
            with Path(self.target).open("rb") as file:
                data = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            reason = error.strerror or "cannot be read"
            message = f"{field}: {self} cannot be read: {reason}"
            raise ConfigError(message, field=field, reference=str(self)) from None
        if len(data) > SECRET_BYTES_MAX:
            message = f"{field}: {self} is larger than {SECRET_BYTES_MAX:,} bytes"
            raise ConfigError(message, field=field, reference=str(self))
        try:
            return data.decode()
        except UnicodeDecodeError:
            message = f"{field}: {self} is not UTF-8 text"
            raise ConfigError(message, field=field, reference=str(self)) from None


def parse_secret(text: str, *, base: Path, home: Path) -> SecretRef:
    """Return the reference that ``text`` writes: ``env:NAME`` or ``file:path``.

    A relative path is taken from ``base``, ``~`` is ``home``.

    Raises:
        ValueError: ``text`` is something else, perhaps the secret itself; it is not repeated.
    """
    source, colon, target = text.partition(":")
    if colon and source == "env" and _VARIABLE.match(target):
        return SecretRef(source="env", target=target)
    if colon and source == "file" and target and "\x00" not in target:
        return SecretRef(source="file", target=str(expand_path(target, base=base, home=home)))
    raise ValueError(
        "a secret is written as a reference, env:NAME or file:path, never as its own text"
    )


def expand_path(text: str, *, base: Path, home: Path) -> Path:
    """Return ``text`` as an absolute path: ``~`` is ``home``, relative paths start at ``base``."""
    if text == "~" or text.startswith("~/"):
        return home / text[2:]
    return base / text
