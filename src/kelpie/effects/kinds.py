"""What the gate must know about an effect kind, without its executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kelpie.effects.model import Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectKind:
    """An effect kind.

    ``prepares`` says that the executor looks at the target before classification; ``is_grant``
    that the effect is never executed itself but, once approved, covers others.
    """

    name: str
    prepares: bool
    promise: Callable[[dict[str, Any]], Promise]
    is_grant: bool = False
