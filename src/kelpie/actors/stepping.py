"""Drives a coroutine step by step: to begin it outside a task, or to time its steps."""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

Step = Callable[[Callable[[Any], Any], Any], Any]
"""Given ``send`` or ``throw`` of a coroutine and its argument, take one step."""

_NOTHING: Final = object()


def take_step(send: Callable[[Any], Any], value: Any) -> Any:
    """Take one step and return what the coroutine waits for."""
    return send(value)


@types.coroutine
def drive(
    work: Coroutine[Any, Any, Any], *, awaited: Any = _NOTHING, step: Step = take_step
) -> Generator[Any, Any, Any]:
    """Drive ``work`` to its end and return its value.

    With ``awaited`` it was begun before and waits for that. Cancellation and closing reach it.
    """
    send: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        if awaited is _NOTHING:
            try:
                awaited = step(send, value)
            except StopIteration as end:
                return end.value
        try:
            value = yield awaited
            send = work.send
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:  # noqa: BLE001  handed to the work, which owns it
            send, value = work.throw, error
        awaited = _NOTHING
