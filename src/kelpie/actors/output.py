"""The output gate: what a turn answers leaves when all that it read is durable, and proven ours.

Commits turns in their order and answers whoever waits. A command's answer is proven by its own
commit, which the shard's epoch fences. An answer that nothing was written for is proven by the
lease: after its value was read the lease still ran, so nobody else could have written meanwhile.

Invariants: no answer leaves before its version is durable; none that was read past the lease
leaves at all; a refused commit takes the later turns of its actor with it, and nobody else's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kelpie.actors.activation import Activation, Envelope, Waiter
from kelpie.actors.commit import Drafted
from kelpie.actors.open_commits import OpenCommits
from kelpie.core.errors import (
    CommitUnknownError,
    FencedError,
    KelpieError,
    StoreError,
    VersionConflictError,
)
from kelpie.storage.records import Commit, CommitReceipt

if TYPE_CHECKING:
    from kelpie.actors.turns import Turns

CommitListener = Callable[[Commit, CommitReceipt], None]
"""Called on the loop, in order, once a commit is durable; must be quick and must not raise."""


class OutputGate:
    """What leaves the actors of one process."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._store = turns.ports.store
        self._clock = turns.ports.clock
        self._telemetry = turns.ports.telemetry
        self._ownership = turns.ports.ownership
        self._work = turns.work
        self.listeners: list[CommitListener] = []
        self.open_commits = OpenCommits()

    # --- answers of turns that wrote nothing ----------------------------------------------------

    def answer(
        self, activation: Activation, envelope: Envelope, value: Any, *, read_ns: int
    ) -> None:
        """Answer once everything the activation has written so far is durable.

        ``read_ns`` is a boot time after the value was read.
        """
        if read_ns >= self._ownership.until_ns:
            envelope.fail(self._ownership.refusal(activation.shard))
        elif activation.durable_version >= activation.version:
            envelope.succeed(value)
        else:
            if activation.waiters is None:
                activation.waiters = deque()
            self._work.begin()
            activation.waiters.append(Waiter(activation.version, envelope, value))

    def refuse(self, activation: Activation, envelope: Envelope, error: KelpieError) -> None:
        """Tell the caller what the actor refused, which was read of its state too."""
        if self._clock.boot_ns() >= self._ownership.until_ns:
            error = self._ownership.refusal(activation.shard)
        envelope.fail(error)

    # --- commits --------------------------------------------------------------------------------

    def commit(self, activation: Activation, envelope: Envelope, drafted: Drafted) -> None:
        """Write a turn down, and answer its caller once it is durable."""
        self._work.begin()
        try:
            outcome = self._store.commit(drafted.commit)
        except KelpieError as error:
            self._refused(activation, envelope, error)
            return
        self.open_commits.begin(activation.actor)
        outcome.add_done_callback(lambda done: self._committed(activation, envelope, drafted, done))

    def _committed(
        self,
        activation: Activation,
        envelope: Envelope,
        drafted: Drafted,
        done: asyncio.Future[CommitReceipt],
    ) -> None:
        self.open_commits.end(activation.actor)
        if done.cancelled():
            message = f"the commit of {activation.actor} was abandoned; read before you retry"
            self._refused(activation, envelope, CommitUnknownError(message))
            return
        error = done.exception()
        if error is not None:
            known = error if isinstance(error, KelpieError) else StoreError(repr(error))
            self._refused(activation, envelope, known)
            return
        receipt = done.result()
        assert receipt.version == drafted.commit.expected_version + 1, "versions grow by one"
        activation.durable_version = max(activation.durable_version, receipt.version)
        for listener in self.listeners:
            listener(drafted.commit, receipt)
        envelope.succeed(drafted.reply)
        self._release_waiters(activation)
        self._work.end()
        if drafted.commit.tombstone:
            self._turns.departures.leave(activation)
        elif activation.phase != "ready":
            self._turns.departures.go_on_when_settled(activation)

    def _refused(self, activation: Activation, envelope: Envelope, error: KelpieError) -> None:
        self._telemetry.count("kelpie.commit.refusals", code=error.code)
        if isinstance(error, FencedError):
            self._ownership.fence(activation.shard, activation.epoch)
            refusal = self._ownership.refusal(activation.shard)
            refusal.__cause__ = error
            error = refusal
        envelope.fail(error)
        self._work.end()
        retry = VersionConflictError(
            f"an earlier turn of {activation.actor} was not stored ({error.code}); try again",
            actor=str(activation.actor),
        )
        self._turns.departures.discard(activation, retry)

    def _release_waiters(self, activation: Activation) -> None:
        waiters = activation.waiters
        while waiters and waiters[0].version <= activation.durable_version:
            waiter = waiters.popleft()
            waiter.envelope.succeed(waiter.value)
            self._work.end()
        if not waiters:
            activation.waiters = None
