"""The contract of whoever carries an effect out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kelpie.core.errors import DeniedError
from kelpie.core.ids import ActorId
from kelpie.effects.model import EffectRecord, Outcome, Preparation, Promise, bound_digest

StreamSink = Callable[[str, bytes], Awaitable[None]]
"""``await sink(kind, body)`` returns once the chunk is durable; then readers may see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A started effect, handed to its executor.

    An order exists only for a record in state ``started`` that carries a verdict and an approval
    bound to exactly this effect. ``not_after_ms`` is wall time.

    Raises:
        DeniedError: The record lacks a decision, or carries one about something else.
    """

    actor: ActorId
    record: EffectRecord
    attempt: int
    not_after_ms: int
    stream: StreamSink

    def __post_init__(self) -> None:
        record = self.record
        verdict, approval = record.verdict, record.approval
        if record.state != "started" or verdict is None or approval is None:
            raise DeniedError(f"effect {record.effect_id} has no decision to start it")
        digest = bound_digest(record, verdict.policy)
        if verdict.color == "deny" or approval.digest != digest or record.digest != digest:
            raise DeniedError(f"effect {record.effect_id} is not the one that was approved")


class Executor(Protocol):
    """Runs effects of one kind."""

    @property
    def kind(self) -> str:
        """The effect kind it runs."""
        ...

    @property
    def concurrency_max(self) -> int:
        """How many orders may run at once on this node."""
        ...

    def promise(self, args: dict[str, Any]) -> Promise:
        """Return what these arguments' execution promises across a crash."""
        ...

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Look at the target and describe the effect; changes nothing.

        Returns a failed `Outcome` when the effect cannot be carried out at all.
        """
        ...

    async def execute(self, order: Order) -> Outcome:
        """Carry the order out and say what it came to.

        A typed failure is an outcome, not an exception; on cancellation nothing it started
        survives.
        """
        ...

    async def reconcile(self, order: Order) -> Outcome | None:
        """For ``reconcilable``: read an interrupted attempt's outcome back, None if untouched."""
        ...
