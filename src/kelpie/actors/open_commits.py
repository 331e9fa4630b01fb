"""Commits that have no outcome yet, by actor: whoever loads an actor waits for them.

A commit is checked against the actor's version alone. A state that was loaded while an earlier
commit was on its way could be built upon, refused, and then, once that commit has taken the place
of the refused turn, be continued as if nothing had happened. So nothing is loaded before every
commit that this process sent for the actor has come to its outcome.
"""

from __future__ import annotations

import asyncio

from kelpie.core.ids import ActorId


class OpenCommits:
    """How many commits of each actor are on their way, and who waits for their end."""

    __slots__ = ("_counts", "_waiting")

    def __init__(self) -> None:
        self._counts: dict[ActorId, int] = {}
        self._waiting: dict[ActorId, asyncio.Future[None]] = {}

    def begin(self, actor: ActorId) -> None:
        """Count a commit that is sent."""
        before = self._counts.get(actor, 0)
        assert before >= 0, "commits are counted up from zero"
        self._counts[actor] = before + 1
        assert actor in self._counts, "whoever loads it waits"

    def end(self, actor: ActorId) -> None:
        """Count a commit that has its outcome."""
        left = self._counts[actor] - 1
        assert left >= 0, "more outcomes than commits"
        if left:
            self._counts[actor] = left
            return
        del self._counts[actor]
        waiting = self._waiting.pop(actor, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        assert actor not in self._waiting, "nobody waits for what has ended"

    async def settled(self, actor: ActorId) -> None:
        """Return once no commit of the actor is on its way."""
        while actor in self._counts:
            waiting = self._waiting.get(actor)
            if waiting is None:
                waiting = self._waiting[actor] = asyncio.get_running_loop().create_future()
            assert not waiting.done(), "a wait that ended is forgotten"
            await asyncio.shield(waiting)
        assert actor not in self._counts, "an outcome is still open"
