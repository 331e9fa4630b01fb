"""Randomness that a re-run of the turn repeats."""

from __future__ import annotations

import hashlib

from kelpie.actors.machine import Turn


class TurnRng:
    """Random numbers drawn from one turn's seed; implements the Rng port."""

    __slots__ = ("_count", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._count = 0

    def bytes(self, count: int) -> bytes:
        """Return ``count`` random bytes (1 to 1,024)."""
        assert 1 <= count <= 1_024, "1 to 1,024 bytes at once"
        drawn = hashlib.shake_128(self._turn.material() + b"rng" + self._count.to_bytes(8, "big"))
        self._count += 1
        assert self._count > 0
        return drawn.digest(count)

    def fraction(self) -> float:
        """Return a number in [0, 1)."""
        return (int.from_bytes(self.bytes(7), "big") >> 3) / (1 << 53)

    def below(self, bound: int) -> int:
        """Return an integer in ``range(bound)``, as even as 128 bits make it."""
        assert bound >= 1, "a range with something in it"
        return int.from_bytes(self.bytes(16), "big") % bound

    def uuid(self) -> str:
        """Return a version-4 UUID."""
        return self._turn.new_uuid()
