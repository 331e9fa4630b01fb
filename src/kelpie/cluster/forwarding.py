"""Has the owner of an actor do what only it can: the whole request of a caller, passed on.

Calls and queries go by the router. This is for the rest of what the HTTP edge does with an actor
in memory: pauses, submitted calls, a look at it. The owner answers as its own edge would; it never
passes the request on again, but says who owns the actor as far as it knows.

Invariants: no attempt outlasts the caller's deadline; a request that may have arrived is sent again
only because it has a key, or is harmless twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

import msgspec

from kelpie.cluster.messages import UNDECODABLE, Asked, EdgeAnswer, EdgeCall
from kelpie.core import limits
from kelpie.core.errors import (
    BusyError,
    ConflictError,
    DeadlineError,
    DrainingError,
    KelpieError,
    NotOwnerError,
)
from kelpie.ports.clock import Clock
from kelpie.ports.network import NetworkError
from kelpie.ports.telemetry import Telemetry

T = TypeVar("T")
_NANOSECONDS_PER_MS: Final = 1_000_000
_HOPS_MAX: Final = 2  # the owner as it is known here, and as that node knows it


class Asking(Protocol):
    """The way to other nodes; `Lines` is it."""

    async def ask(self, address: str, body: Asked, *, timeout_ms: int, trace: str = "") -> bytes:
        """Return what the node at ``address`` answers."""
        ...


class Forwarding:
    """What the edge passes on.

    Args:
        lines: The way to other nodes.
        address: Where other nodes reach this one.
        traceparent: Returns the running span's W3C traceparent, empty without one.
    """

    def __init__(
        self,
        *,
        lines: Asking,
        address: str,
        clock: Clock,
        telemetry: Telemetry,
        traceparent: Callable[[], str],
    ) -> None:
        self._lines = lines
        self._address = address
        self._clock = clock
        self._telemetry = telemetry
        self._traceparent = traceparent

    async def insist(
        self,
        request: EdgeCall,
        here: Callable[[], Awaitable[T]],
        refusal: NotOwnerError,
        *,
        ends_ns: int,
    ) -> T | EdgeAnswer:
        """Return the owner's answer, or what ``here`` returns once this node is the owner.

        Args:
            request: What is passed on; harmless when it arrives twice.
            here: Does the same on this node.
            refusal: Why it could not be done here.
            ends_ns: The boot time until which the caller waits.

        Raises:
            NotOwnerError: Nobody owned the actor until then; nothing was done.
            DeadlineError: The time is up after the request may have arrived.
            KelpieError: What the owner, or ``here``, refuses.
        """
        pause_ms, was_sent = limits.FORWARD_PAUSE_MS_MIN, False
        while True:
            try:
                return await self._follow(request, refusal, ends_ns)
            except NotOwnerError as error:
                refusal = error
            except (DrainingError, NetworkError) as error:
                was_sent = was_sent or (isinstance(error, NetworkError) and error.sent)
            self._telemetry.count("kelpie.rpc.retries")
            left_ms = self._left_ms(ends_ns)
            if left_ms <= 0:
                raise _too_late(request, refusal, was_sent=was_sent)
            await self._clock.sleep(min(pause_ms, left_ms) / 1_000)
            pause_ms = min(2 * pause_ms, limits.FORWARD_PAUSE_MS_MAX)
            try:
                return await here()
            except NotOwnerError as error:
                refusal = error

    async def _follow(self, request: EdgeCall, refusal: NotOwnerError, ends_ns: int) -> EdgeAnswer:
        """Ask the owner that is named, and follow one redirect."""
        for _ in range(_HOPS_MAX):
            address, left_ms = named_owner(refusal), self._left_ms(ends_ns)
            if not address or address == self._address or left_ms <= 0:
                break
            try:
                value = await self._lines.ask(
                    address, request, timeout_ms=left_ms, trace=self._traceparent()
                )
                return _read_answer(value)
            except NotOwnerError as error:
                refusal = error
        raise refusal

    def _left_ms(self, ends_ns: int) -> int:
        return (ends_ns - self._clock.boot_ns()) // _NANOSECONDS_PER_MS


def named_owner(error: KelpieError) -> str:
    """Return the address of the owner that an error names, empty if it names none."""
    owner = error.fields.get("owner") if isinstance(error, NotOwnerError) else None
    return owner if isinstance(owner, str) else ""


def _too_late(request: EdgeCall, refusal: NotOwnerError, *, was_sent: bool) -> BusyError:
    if not was_sent:
        return refusal
    text = f"the owner was not reached again in time; what becomes of {request.path} may follow"
    return DeadlineError(text)


def _read_answer(value: bytes) -> EdgeAnswer:
    try:
        return msgspec.msgpack.decode(value, type=EdgeAnswer)
    except UNDECODABLE as error:
        text = f"the owner answered in another form, as another version might: {error}"
        raise ConflictError(text) from error
