"""A submitted call in its caller's hands: look at it, wait for its result, take it back.

    handle = await runtime.ref(Counter, "a").add.submit(1)
    total = await handle.result()

Owns no state: everything that is said comes from where the call is kept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from kelpie.actors.callers import CallStatus
from kelpie.core.errors import CallCancelledError, DeadlineError, KelpieError
from kelpie.core.limits import CALL_WAIT_MS_MAX, INVOCATION_TIMEOUT_MS

if TYPE_CHECKING:
    from kelpie.actors.api.method import Method

R_co = TypeVar("R_co", covariant=True)


class CallLook(NamedTuple):
    """What a look at a call found: its result when it completed, its error when it did not."""

    status: CallStatus
    value: Any = None
    error: KelpieError | None = None


class CallDesk(Protocol):
    """Where submitted calls are asked about: this process's runtime, or a server."""

    async def look(self, call_id: str, method: Method[Any, Any], *, wait_s: float) -> CallLook:
        """Return the call as it is once it ended, or after ``wait_s``.

        Raises:
            NotFoundError: There is no such call, or its end is not kept any more.
        """
        ...

    async def cancel(self, call_id: str) -> None:
        """Take a call back that has not begun.

        Raises:
            CallBegunError: It runs, or has ended.
            NotFoundError: There is no such call, or its end is not kept any more.
        """
        ...


class CallHandle(Generic[R_co]):
    """One submitted call.

    Attributes:
        call_id: Its name, by which it is found again: ``ref.method.handle(call_id)``.
    """

    __slots__ = ("_desk", "_method", "call_id")

    def __init__(self, call_id: str, method: Method[Any, R_co], desk: CallDesk) -> None:
        self.call_id = call_id
        self._method = method
        self._desk = desk

    async def status(self) -> CallStatus:
        """Return what the call is at now.

        Raises:
            NotFoundError: Its end is not kept any more.
        """
        return (await self._desk.look(self.call_id, self._method, wait_s=0)).status

    async def result(self, *, timeout_s: float = INVOCATION_TIMEOUT_MS / 1000) -> R_co:
        """Wait for the call's end and return what it came to.

        Args:
            timeout_s: How long to wait; the call goes on whatever becomes of the wait.

        Raises:
            DeadlineError: It has not ended yet; ask again.
            CallCancelledError: It was cancelled, and never ran.
            NotFoundError: Its end is not kept any more.
            KelpieError: The error that it failed with.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while True:
            left_s = max(0.0, until_s - loop.time())
            wait_s = min(left_s, CALL_WAIT_MS_MAX / 1000)
            seen = await self._desk.look(self.call_id, self._method, wait_s=wait_s)
            match seen.status:
                case "completed":
                    value: R_co = seen.value
                    return value
                case "failed" | "dead":
                    raise seen.error or KelpieError(f"call {self.call_id} is {seen.status}")
                case "cancelled":
                    text = f"call {self.call_id} was cancelled before it began"
                    raise CallCancelledError(text, call_id=self.call_id)
                case "pending" | "running":
                    if loop.time() >= until_s:
                        text = f"call {self.call_id} is {seen.status} after {timeout_s:g} s"
                        raise DeadlineError(f"{text}; it goes on, ask again", call_id=self.call_id)

    async def cancel(self) -> None:
        """Take the call back: it never runs. Harmless when that was done before.

        Raises:
            CallBegunError: It runs, or has ended; its ``state`` says which.
            NotFoundError: Its end is not kept any more.
        """
        await self._desk.cancel(self.call_id)
