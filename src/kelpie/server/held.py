"""Refuses, on a store that is held after a restore, what would wait for its release in silence."""

from __future__ import annotations

from typing import Any

from kelpie.core.errors import StoreHeldError
from kelpie.server.operations import Call


def require_released(call: Call[Any, Any]) -> None:
    """Return if what a caller waits for can happen.

    Raises:
        StoreHeldError: The store is held after a restore, so nothing is executed.
    """
    if call.deps.store.held:
        message = (
            "the store is held after a restore, and nothing is executed before it is released; "
            "look at what waits, then run: kelpie store release"
        )
        raise StoreHeldError(message, restored=True)
