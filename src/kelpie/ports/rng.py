"""Randomness as a port."""

from __future__ import annotations

from typing import Protocol


class Rng(Protocol):
    """The world's source of randomness: unpredictable on a host, seeded in a simulation."""

    def bytes(self, count: int) -> bytes:
        """Return ``count`` random bytes (1 to 1,024)."""
        ...

    def fraction(self) -> float:
        """Return a number in [0, 1)."""
        ...
