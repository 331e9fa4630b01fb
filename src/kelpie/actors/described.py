"""Typed errors as data: stored with a call that failed, sent over HTTP, and raised again.

Invariant: an error that comes back has the code, the message and the fields that it left with, and
the class that the code belongs to where this program knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import msgspec

from kelpie.core.errors import KelpieError
from kelpie.core.limits import FAILURE_TRACE_CHARS_MAX


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A typed error, for keeping and sending."""

    code: str
    message: str
    retriable: bool = False
    fields: dict[str, Any] = {}

    def restore(self) -> KelpieError:
        """Return the error; a code that this program does not know keeps code and message."""
        kind = _errors_by_code().get(self.code)
        if kind is None:
            # Code and retriability are facts of a class, so what nobody knows gets its own.
            facts = {"code": self.code, "retriable": self.retriable}
            kind = cast("type[KelpieError]", type("RemoteError", (KelpieError,), facts))
        error = kind.__new__(kind)
        KelpieError.__init__(error, self.message, **self.fields)
        for name, value in self.fields.items():
            if name in kind.__init__.__annotations__ and not hasattr(error, name):
                setattr(error, name, value)
        return error


def describe(error: KelpieError) -> Described:
    """Return the error as data that any store takes: its text bounded, its fields plain values."""
    fields: dict[str, Any] = {
        name: _clean(value) if isinstance(value, str) else value
        for name, value in error.fields.items()
    }
    message = _clean(error.message)
    return Described(code=error.code, message=message, retriable=error.retriable, fields=fields)


def _clean(text: str) -> str:
    # What a program says may be long, and may have lone surrogates.
    return text[:FAILURE_TRACE_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


@cache
def _errors_by_code() -> dict[str, type[KelpieError]]:
    return {kind.code: kind for kind in _tree(KelpieError)}


def _tree(kind: type[KelpieError]) -> Iterator[type[KelpieError]]:
    for each in kind.__subclasses__():
        yield from _tree(each)
    yield kind
