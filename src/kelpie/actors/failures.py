"""What is said of an exception that an actor's own code let go: its text, its traceback, its line.

Owns words and reports; what happens to the turn is decided where it ran.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

from kelpie.actors.activation import Activation
from kelpie.core import limits
from kelpie.core.errors import ActorFailedError, KelpieError
from kelpie.ports.telemetry import Telemetry

PACKAGE: Final = f"{Path(__file__).parents[1]}/"


def find_place(error: BaseException) -> str:
    """Return ``file:line in function`` of the deepest line of the handler's own file.

    That line says more than one of the library which it called wrongly. "" when the error came
    from no handler.
    """
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(PACKAGE)]
    if not outside:
        return ""
    deepest = [frame for frame in outside if frame.filename == outside[0].filename][-1]
    return f"{Path(deepest.filename).name}:{deepest.lineno} in {deepest.name}"


def describe_failure(error: KelpieError) -> str:
    """Return the error and, when a bug caused it, the end of that bug's traceback."""
    text = str(error)[: limits.FAILURE_TRACE_CHARS_MAX]
    if error.__cause__ is not None:
        trace = "".join(traceback.format_exception(error.__cause__))
        text = f"{text}\n{trace[-limits.FAILURE_TRACE_CHARS_MAX :]}"
    # What a program says may have lone surrogates, which no store takes.
    return text.encode("utf-8", "backslashreplace").decode()


class FailureLog:
    """Reports the bugs of actors."""

    __slots__ = ("_telemetry",)

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def fail(self, activation: Activation, error: BaseException) -> ActorFailedError:
        """Report a handler's or a machine's exception, and return what its caller gets."""
        self.report(activation, error)
        failure = ActorFailedError(
            f"{activation.actor} failed: {error!r}; nothing was changed",
            actor=str(activation.actor),
        )
        failure.__cause__ = error
        return failure

    def report(self, activation: Activation, error: BaseException) -> None:
        """Count and log an exception that user code let go."""
        self._telemetry.count("kelpie.turn.failures", type=activation.actor.type)
        self.log("turn.failed", activation, error)

    def log(self, event: str, activation: Activation, error: BaseException) -> None:
        """Log a bug, and where it is."""
        place = find_place(error)
        where = {"at": place} if place else {}
        self._telemetry.log("error", event, actor=str(activation.actor), error=repr(error), **where)
