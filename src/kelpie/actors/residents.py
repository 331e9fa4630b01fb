"""Which actors are in memory, and who leaves when there are too many.

The least recently used go first, by second chance: an actor that was used since the last sweep is
spared once. That costs a call one assignment where a strict order would cost it a hash.

Invariants: no actor with work in flight leaves; the sum of sizes is what the actors say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from kelpie.actors.activation import Activation
from kelpie.core.ids import ActorId
from kelpie.core.limits import RESIDENT_RECORD_BYTES
from kelpie.ports.faults import fault

CANDIDATES_PER_SWEEP: Final = 64  # so that a sweep over busy actors stays short


class Residents:
    """The resident actors of one process, oldest first."""

    __slots__ = ("_actors", "_bytes", "_bytes_max", "_count_max", "get")

    def __init__(self, *, count_max: int, bytes_max: int) -> None:
        assert count_max >= 1
        assert bytes_max >= RESIDENT_RECORD_BYTES
        self._actors: OrderedDict[ActorId, Activation] = OrderedDict()
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self.get = self._actors.get

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Activation]:
        return iter(self._actors.values())

    @property
    def size_bytes(self) -> int:
        """How much memory the residents are counted with."""
        return self._bytes

    def add(self, activation: Activation) -> None:
        """Take an actor in that is not resident."""
        assert activation.actor not in self._actors, f"{activation.actor} is resident twice"
        assert activation.size_bytes == 0, "a new activation has no state"
        self._actors[activation.actor] = activation
        self._bytes += RESIDENT_RECORD_BYTES

    def discard(self, activation: Activation) -> None:
        """Let an actor go; harmless when it went before."""
        assert self._bytes >= 0
        if self._actors.get(activation.actor) is activation:
            del self._actors[activation.actor]
            self._bytes -= RESIDENT_RECORD_BYTES + activation.size_bytes
        assert self._bytes >= 0, "more memory was given back than taken"

    def resize(self, activation: Activation, size_bytes: int) -> None:
        """Note that the actor's state now takes ``size_bytes``."""
        assert size_bytes >= 0
        if self._actors.get(activation.actor) is activation:
            self._bytes += size_bytes - activation.size_bytes
        activation.size_bytes = size_bytes
        assert self._bytes >= 0

    def sweep(self) -> list[Activation]:
        """Let idle actors go while there is too much; return who went.

        Looks at a bounded number of actors, so that one call never pays for all.
        """
        gone: list[Activation] = []
        is_short = fault("resource.out_of_memory")
        for _ in range(CANDIDATES_PER_SWEEP):
            fits = len(self._actors) <= self._count_max and self._bytes <= self._bytes_max
            if not self._actors or (fits and not is_short):
                break
            activation = next(iter(self._actors.values()))
            if activation.idle and not activation.touched and not activation.paused:
                assert activation.running is None, "a busy actor must stay"
                self.discard(activation)
                activation.phase = "gone"
                gone.append(activation)
            else:
                activation.touched = False
                self._actors.move_to_end(activation.actor)
        return gone

    def check_invariants(self) -> None:
        """Assert that the books agree with the actors."""
        total = 0
        for actor, activation in self._actors.items():
            assert actor == activation.actor
            activation.check_invariants()
            total += RESIDENT_RECORD_BYTES + activation.size_bytes
        assert total == self._bytes, "the sizes do not add up"
