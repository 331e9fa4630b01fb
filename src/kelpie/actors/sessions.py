"""Whether the sessions of other nodes have ended, asked of the store now and then.

A store with one holder has no others: every earlier session of it has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from kelpie.core.errors import KelpieError
from kelpie.ports.clock import Clock

LOOK_INTERVAL_S: Final = 1.0
SESSIONS_KEPT_MAX: Final = 1_024

EndedOf = Callable[[str], Awaitable[bool]]
"""Says of a session whether it has ended, for good."""


class EndedSessions:
    """What is known of sessions that are not this node's.

    Args:
        ended: Asks the store; None where there is one holder.
        clock: Time.
    """

    def __init__(self, ended: EndedOf | None = None, *, clock: Clock) -> None:
        self._ended = ended
        self._clock = clock
        self._known: dict[str, None] = {}
        self._asked_ns: dict[str, int] = {}

    @property
    def is_alone(self) -> bool:
        """Whether nobody else ever holds a session beside this node's."""
        return self._ended is None

    async def has_ended(self, session: str) -> bool:
        """Return whether ``session`` is known to have ended; asks the store once a second."""
        if self._ended is None or session in self._known:
            return True
        now_ns = self._clock.boot_ns()
        if now_ns < self._asked_ns.get(session, 0):
            return False
        self._forget()
        self._asked_ns[session] = now_ns + int(LOOK_INTERVAL_S * 1e9)
        try:
            is_ended = await self._ended(session)
        except KelpieError:
            return False  # a store that cannot be asked now is asked again
        if not is_ended:
            return False
        self._asked_ns.pop(session, None)
        self._known[session] = None
        assert session not in self._asked_ns, "what has ended is asked about no more"
        return True

    def _forget(self) -> None:
        """Keep what is remembered bounded, oldest out."""
        for kept in (self._known, self._asked_ns):
            while len(kept) >= SESSIONS_KEPT_MAX:
                del kept[next(iter(kept))]
            assert len(kept) < SESSIONS_KEPT_MAX
