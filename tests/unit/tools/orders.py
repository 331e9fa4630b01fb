"""Orders as the dispatcher makes them: started, with a verdict and an approval that matches."""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.core.ids import ActorId, Tenant
from kelpie.effects.executor import Order, StreamSink
from kelpie.effects.model import (
    Approval,
    Color,
    EffectRecord,
    Preparation,
    Verdict,
    bound_digest,
)

ACTOR = ActorId(Tenant("default"), "agent", "agent-1")


class StoppedClock:
    """A clock that stands still."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def boot_ns(self) -> int:
        return self._now_ms * 1_000_000

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nobody waits {seconds} s here")


async def ignore(kind: str, body: bytes) -> None:
    """Drop a chunk."""


def make_record(kind: str, args: dict[str, Any]) -> EffectRecord:
    """Return a proposed effect."""
    return EffectRecord(
        effect_id="effect-1",
        kind=kind,
        ref="ref",
        args=args,
        state="proposed",
        promise="once",
        timeout_ms=1_000,
        created_ms=0,
        updated_ms=0,
    )


def make_order(
    kind: str,
    args: dict[str, Any],
    *,
    preparation: Preparation | None = None,
    color: Color = "red",
    stream: StreamSink = ignore,
    actor: ActorId = ACTOR,
) -> Order:
    """Return a started order whose approval is bound to it."""
    verdict = Verdict(color=color, reasons=("why",), policy="p", at_ms=0)
    record = msgspec.structs.replace(
        make_record(kind, args), preparation=preparation, verdict=verdict, attempt=1
    )
    digest = bound_digest(record, "p")
    approval = Approval(digest=digest, by="ada", at_ms=0)
    record = msgspec.structs.replace(record, state="started", digest=digest, approval=approval)
    return Order(actor=actor, record=record, attempt=1, not_after_ms=10**14, stream=stream)
