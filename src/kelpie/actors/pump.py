"""What the pumps share: their collaborators, and what they do about a delivery that failed."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Final

from kelpie.actors.engine import Engine
from kelpie.actors.supervisor import Supervisor
from kelpie.core import limits
from kelpie.core.errors import ActorFailedError, InputError, KelpieError
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store

RETRY_DELAY_MS_MIN: Final = 100
RETRY_DELAY_MS_MAX: Final = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpDeps:
    """The collaborators of the outbox pump and the reminder pump."""

    store: Store
    runtime: Engine
    clock: Clock
    telemetry: Telemetry
    supervisor: Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """One failed delivery, and what follows from it.

    Attributes:
        error: Why it failed.
        attempts: How many deliveries have counted, this one included where it counts.
        is_final: Whether there is no further attempt.
        delay_ms: How long to wait before the next one.
    """

    error: KelpieError
    attempts: int
    is_final: bool
    delay_ms: int


def judge_failure(error: BaseException, attempts: int) -> Setback:
    """Return what follows from a failure after ``attempts`` earlier ones.

    A retriable failure does not count. What its receiver refuses as malformed will be refused
    again, so it is final at once.
    """
    assert attempts >= 0, "attempts count from zero"
    known = error if isinstance(error, KelpieError) else ActorFailedError(repr(error))
    attempts += 0 if known.retriable else 1
    is_spent = not known.retriable and attempts >= limits.MESSAGE_ATTEMPTS_MAX
    return Setback(
        error=known,
        attempts=attempts,
        is_final=is_spent or isinstance(known, InputError),
        delay_ms=min(RETRY_DELAY_MS_MIN << min(attempts, 10), RETRY_DELAY_MS_MAX),
    )


def describe_failure(error: KelpieError) -> str:
    """Return the error and, when a bug caused it, the end of that bug's traceback."""
    if error.__cause__ is None:
        return str(error)
    trace = "".join(traceback.format_exception(error.__cause__))
    return f"{error}\n{trace[-limits.FAILURE_TRACE_CHARS_MAX :]}"
