"""An actor's ordered map as its turn sees it: what is stored, under what the turn has written.

Invariants: reads see the turn's own writes; nothing is written outside the turn's commit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from kelpie.actors import commands as c
from kelpie.actors.machine import Scope
from kelpie.core import limits
from kelpie.core.errors import InvalidFieldError, LimitExceededError, OrderError
from kelpie.core.ids import ActorId

T = TypeVar("T")


class Kv:
    """The actor's own ordered map: for what is too much for its state. Keys order as text."""

    __slots__ = ("_actor", "_ask", "_scope", "_written")

    def __init__(
        self, actor: ActorId, ask: Callable[[c.Command], None], scope: Scope | None
    ) -> None:
        self._actor = actor
        self._ask = ask
        self._scope = scope
        self._written: dict[str, bytes | None] = {}

    def set(self, key: str, value: Any) -> None:
        """Set one key to a msgspec-encodable value, with this turn.

        Raises:
            InvalidFieldError: The key is empty.
            LimitExceededError: The key or the value is too large.
            OrderError: This is a query.
        """
        encoded = msgspec.msgpack.encode(value)
        _require_key(key)
        if len(encoded) > limits.KV_VALUE_BYTES_MAX:
            raise LimitExceededError(
                key, actual=len(encoded), limit=limits.KV_VALUE_BYTES_MAX, unit="bytes"
            )
        self._ask(c.PutKv(key=key, value=msgspec.Raw(encoded)))
        self._written[key] = encoded
        assert key in self._written, "the turn reads its own writes"

    def delete(self, key: str) -> None:
        """Remove one key with this turn; harmless when absent."""
        _require_key(key)
        self._ask(c.DeleteKv(key=key))
        self._written[key] = None
        assert key in self._written, "the turn reads its own writes"

    async def get(self, key: str, kind: type[T]) -> T | None:
        """Return one value, this turn's own writes included; None when absent.

        Raises:
            OrderError: The handler is a ``def``.
            InvalidFieldError: The stored value is of another type.
        """
        _require_key(key)
        if key in self._written:
            encoded = self._written[key]
        else:
            encoded = await self._require_scope().kv_get(key)
        return None if encoded is None else _decode(key, encoded, kind)

    async def range(
        self,
        kind: type[T],
        *,
        start: str = "",
        end: str = "",
        limit: int = 100,
        descending: bool = False,
    ) -> list[tuple[str, T]]:
        """Return pairs with ``start <= key < end`` in key order, own writes included.

        Args:
            kind: The values' type.
            start: The first key; to go on after a page, its last key with a NUL character.
            end: The key to stop before; empty for no end. Going down, the last page's last key.
            limit: How many pairs at most, up to ``LIST_PAGE_ROWS_MAX``.
            descending: Whether to go down from the end.

        Raises:
            OrderError: The handler is a ``def``.
            InvalidFieldError: A stored value is of another type.
        """
        limit = max(1, min(limit, limits.LIST_PAGE_ROWS_MAX - len(self._written)))
        above = end or "\U0010ffff"
        own = {key: value for key, value in self._written.items() if start <= key < above}
        rows = dict(
            await self._require_scope().kv_range(
                start,
                above,
                limit=limit + len(own),
                descending=descending,
            )
        )
        merged: dict[str, bytes | None] = {**rows, **own}
        keys = sorted((key for key in merged if merged[key] is not None), reverse=descending)
        pairs = ((key, merged[key]) for key in keys[:limit])
        return [(key, _decode(key, value, kind)) for key, value in pairs if value is not None]

    def _require_scope(self) -> Scope:
        if self._scope is None:
            raise OrderError(f"{self._actor}: only an async def may read ctx.kv")
        return self._scope


def _require_key(key: str) -> None:
    size = len(key.encode())
    if not key:
        raise InvalidFieldError("kv.key", "must not be empty")
    if size > limits.KV_KEY_BYTES_MAX:
        raise LimitExceededError("kv.key", actual=size, limit=limits.KV_KEY_BYTES_MAX, unit="bytes")


def _decode(key: str, encoded: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidFieldError(f"kv.{key}", str(error)) from error
