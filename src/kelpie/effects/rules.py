"""What the gate decides by: the known effect kinds, the policy, and how long a question stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kelpie.core.limits import APPROVAL_TTL_MS, APPROVAL_TTL_MS_MAX
from kelpie.effects.model import Promise
from kelpie.effects.policy import Policy


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRules:
    """What the gate decides by: the policy, the known kinds, and how long a question stands."""

    policy: Policy
    kinds: Mapping[str, EffectKind]
    approval_ttl_ms: int = APPROVAL_TTL_MS

    def __post_init__(self) -> None:
        assert 0 < self.approval_ttl_ms <= APPROVAL_TTL_MS_MAX
