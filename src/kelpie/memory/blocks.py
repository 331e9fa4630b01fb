"""Core memory blocks: short texts that are always in an agent's context.

Pure functions over immutable blocks; only the owning actor's turn calls them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.core.limits import BLOCK_CHARS_DEFAULT


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled text. ``version`` grows by one with every change of the value."""

    id: str
    label: str
    value: str = ""
    limit: int = BLOCK_CHARS_DEFAULT
    description: str = ""
    read_only: bool = False
    metadata: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    version: int = 1
