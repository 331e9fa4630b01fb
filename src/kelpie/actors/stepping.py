"""Drives a coroutine step by step: to begin it outside a task, or to time its steps."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

Step = Callable[[Callable[[Any], Any], Any], Any]
"""Given ``send`` or ``throw`` of a coroutine and its argument, take one step."""

NOTHING: Final = object()


def take_step(send: Callable[[Any], Any], value: Any) -> Any:
    """Take one step and return what the coroutine waits for."""
    return send(value)


class Driven(Generator[Any, Any, Any]):
    """An awaitable that takes another coroutine's steps; cancellation and closing reach it.

    With ``awaited`` the work was begun before and waits for that.
    """

    __slots__ = ("_awaited", "_step", "_work")

    def __init__(
        self, work: Coroutine[Any, Any, Any], *, awaited: Any = NOTHING, step: Step = take_step
    ) -> None:
        self._work = work
        self._awaited = awaited
        self._step = step

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: Any, /) -> Any:
        """Go on with ``value``; return what the work waits for next."""
        if self._awaited is not NOTHING:
            assert value is None, "a generator begins with None"
            awaited, self._awaited = self._awaited, NOTHING
            assert self._awaited is NOTHING
            return awaited
        return self._step(self._work.send, value)

    def throw(self, kind: Any, value: Any = None, trace: Any = None, /) -> Any:
        """Raise in the work what its awaited thing raised."""
        del trace
        assert kind is not None, "something is thrown"
        error = kind if value is None else value
        self._awaited = NOTHING
        assert isinstance(error, BaseException), "only exceptions are thrown"
        return self._step(self._work.throw, error)

    def close(self) -> None:
        """Close the work."""
        self._awaited = NOTHING
        self._work.close()
        assert self._awaited is NOTHING, "closed work waits for nothing"
