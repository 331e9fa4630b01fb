"""How actors leave memory: after a failure, to be loaded anew, or because their shard goes.

A shard that is handed over takes no new call from that moment; the turn that runs may end, what was
written settles, and what waits is told to ask the next owner. A shard that is lost ends at once.

Invariants: nothing that waits is dropped without an answer; of a handler that was stopped nothing
leaves; after a hand-over, as after a loss, no actor of these shards is in memory or comes into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kelpie.actors.activation import Activation
from kelpie.core.errors import DrainingError, KelpieError, NotFoundError
from kelpie.core.limits import HAND_OVER_TURN_MS_MAX

if TYPE_CHECKING:
    from kelpie.actors.turns import Turns


class Departures:
    """The ways out of memory."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._residents = turns.residents
        self._ownership = turns.ports.ownership
        self._departing: dict[Activation, None] = {}
        self._left = asyncio.Event()
        self._ownership.listen(lost=self._lose)

    # --- one actor ------------------------------------------------------------------------------

    def discard(self, activation: Activation, error: KelpieError) -> None:
        """Forget an activation; everything that waits on it fails with ``error``."""
        if activation.phase == "gone":
            return
        activation.phase = "gone"
        self._residents.discard(activation)
        self._stop_handler(activation)
        for waiter in activation.waiters or ():
            waiter.envelope.fail(error)
            self._turns.work.end()
        activation.waiters = None
        _fail_mailbox(activation, error)
        self._turns.deactivate(activation)
        if self._departing.pop(activation, self) is None:
            self._left.set()
        assert activation.mailbox is None, "nobody waits for what is gone"

    def renew(self, activation: Activation) -> None:
        """Load the actor again before its next turn, once what it wrote is durable."""
        if activation.phase != "ready":
            return
        activation.phase = "settling"
        self._stop_handler(activation)
        self.go_on_when_settled(activation)

    def go_on_when_settled(self, activation: Activation) -> None:
        """Let an actor go, or load it anew, if it waits for that and its turns have settled."""
        if activation.durable_version < activation.version or activation.waiters:
            return
        is_running = activation.running is not None
        match activation.phase:
            case "stopped":
                self.discard(activation, self._ownership.refusal(activation.shard))
            case "departing" if not is_running:
                self.discard(activation, self._ownership.refusal(activation.shard))
            case "settling" if not is_running:
                self._load_again(activation)
            case _:
                pass

    def _load_again(self, activation: Activation) -> None:
        self._turns.deactivate(activation)
        if activation.mailbox:
            self._turns.load(activation)
            return
        activation.mailbox = None
        activation.phase = "gone"
        self._residents.discard(activation)

    def leave(self, activation: Activation) -> None:
        """The actor is deleted: whoever queued meanwhile meets its next incarnation."""
        queued = activation.mailbox or ()
        activation.mailbox = None
        self.discard(activation, NotFoundError("actor", str(activation.actor)))
        for envelope in queued:
            self._turns.dispatch(envelope)

    def _stop_handler(self, activation: Activation) -> None:
        running = activation.running
        if running is not None and running.task is not None:
            running.task.cancel()

    # --- many -----------------------------------------------------------------------------------

    def retire(self) -> None:
        """Let go of actors with a hook to run, a handler or waiting calls, at a drain's end."""
        error = DrainingError("the node is shutting down; try again")
        for activation in list(self._residents):
            extras = activation.hosted.extras
            is_busy = bool(activation.mailbox) or activation.running is not None
            if is_busy or (extras is not None and extras.has_hooks):
                self.discard(activation, error)

    async def hand_over(self, shards: frozenset[int]) -> None:
        """Serve ``shards`` no longer, and return once nothing of them is on its way.

        What waits for a turn fails as not owned here, as does a handler that does not end within
        ``HAND_OVER_TURN_MS_MAX``. They are owned until they are lost, which comes next.
        """
        self._ownership.leave(shards)
        going = [each for each in self._residents if each.shard in shards]
        for activation in going:
            self._depart(activation)
        try:
            async with asyncio.timeout(HAND_OVER_TURN_MS_MAX / 1000):
                await self._until_gone(going)
        except TimeoutError:
            for activation in going:
                self._stop(activation)
            await self._until_gone(going)
        assert not any(each.shard in shards for each in self._residents), "somebody stayed"

    def _depart(self, activation: Activation) -> None:
        """Take nothing more for an actor, and let it go once its turn has ended and settled."""
        self._departing[activation] = None
        _fail_mailbox(activation, self._ownership.refusal(activation.shard))
        if activation.phase == "loading":
            self.discard(activation, self._ownership.refusal(activation.shard))
        elif activation.phase in {"ready", "settling"}:
            activation.phase = "departing" if activation.phase == "ready" else "stopped"
            self.go_on_when_settled(activation)

    def _stop(self, activation: Activation) -> None:
        """Stop a handler for good, and let its actor go once what it wrote has settled."""
        running = activation.running
        if activation.phase == "departing" and running is not None:
            running.envelope.fail(self._ownership.refusal(activation.shard))
            activation.phase = "stopped"
            self._stop_handler(activation)
            self.go_on_when_settled(activation)

    async def _until_gone(self, going: Iterable[Activation]) -> None:
        while any(each in self._departing for each in going):
            self._left.clear()
            await self._left.wait()

    def _lose(self, shards: frozenset[int]) -> None:
        """Forget every actor of shards that are owned no longer; their callers ask again."""
        for activation in [each for each in self._residents if each.shard in shards]:
            refusal = self._ownership.refusal(activation.shard)
            if activation.running is not None:
                activation.running.envelope.fail(refusal)
            self.discard(activation, refusal)
        for shard in shards & self._turns.holds.keys():
            del self._turns.holds[shard]
        kept = {actor for actor in self._turns.paused if actor.shard not in shards}
        self._turns.paused.intersection_update(kept)
        assert not any(each.shard in shards for each in self._residents), "a lost actor stayed"

    def check_invariants(self) -> None:
        """Assert what holds between turns."""
        for activation in self._departing:
            assert not self._ownership.serves(activation.shard), "it leaves a shard that stays"
            is_deleted = activation.phase == "leaving"
            assert is_deleted or not activation.mailbox, "nothing waits for an actor that leaves"


def _fail_mailbox(activation: Activation, error: KelpieError) -> None:
    queued, activation.mailbox = activation.mailbox, None
    for envelope in queued or ():
        envelope.fail(error)
    assert activation.mailbox is None, "a queue that failed is empty"
