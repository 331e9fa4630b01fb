"""What the workers beside the engine share, and what the pumps do about a failed delivery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from kelpie.actors.engine import Engine
from kelpie.actors.supervisor import Supervisor
from kelpie.core import limits
from kelpie.core.errors import (
    ActorFailedError,
    ActorMovedError,
    DeadlineError,
    DrainingError,
    InputError,
    KelpieError,
    StoreError,
)
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store

RETRY_DELAY_MS_MIN: Final = 100
RETRY_DELAY_MS_MAX: Final = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpDeps:
    """The collaborators of the pumps, of submitted calls and of pauses.

    ``is_one_of_several`` says that other nodes send messages to actors of this one. ``horizon``
    returns an id up to which every message that will ever be is visible; a store whose ids are
    visible in their order needs none.
    """

    store: Store
    runtime: Engine
    clock: Clock
    telemetry: Telemetry
    supervisor: Supervisor
    is_one_of_several: bool = False
    horizon: Callable[[], Awaitable[int]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """One failed delivery, and what follows from it.

    Attributes:
        error: Why it failed.
        attempts: How many deliveries have counted, this one included where it counts.
        counts: Whether this delivery was an attempt.
        is_refused: Whether its receiver refused it, as it will again.
        is_final: Whether there is no further attempt.
        delay_ms: How long to wait before the next one.
    """

    error: KelpieError
    attempts: int
    counts: bool
    is_refused: bool
    is_final: bool
    delay_ms: int


def judge_failure(error: BaseException, attempts: int, *, is_call: bool = False) -> Setback:
    """Return what follows from a failure after ``attempts`` earlier ones.

    A retriable failure does not count. What its receiver refuses as malformed will be refused
    again, so it is final at once. To a submitted call every refusal on purpose is final, and a
    handler that is late has had its attempt: nobody else would ever give up. An actor whose export
    may be taken back refuses nothing.
    """
    assert attempts >= 0, "attempts count from zero"
    known = error if isinstance(error, KelpieError) else ActorFailedError(repr(error))
    if isinstance(known, ActorMovedError) and not known.is_final:
        known = DrainingError(known.message)  # it may come back, and is not refused until then
    counts = not known.retriable or (is_call and isinstance(known, DeadlineError))
    attempts += counts
    is_refused = isinstance(known, InputError)
    if is_call and not known.retriable:
        is_refused = not isinstance(known, ActorFailedError | StoreError)
    return Setback(
        error=known,
        attempts=attempts,
        counts=counts,
        is_refused=is_refused,
        is_final=is_refused or (counts and attempts >= limits.MESSAGE_ATTEMPTS_MAX),
        delay_ms=min(RETRY_DELAY_MS_MIN << min(attempts, 10), RETRY_DELAY_MS_MAX),
    )
