"""Seeded randomness: the port, and streams that do not disturb each other.

Every purpose draws from a stream of its own, so that one more draw in one place changes no draw in
another: shrinking depends on it.
"""

from __future__ import annotations

import random


def stream(seed: int, purpose: str) -> random.Random:
    """Return the stream of random numbers that ``seed`` gives for ``purpose``."""
    assert purpose, "a stream has a purpose"
    # A text is hashed with SHA-512 by `random`, whatever PYTHONHASHSEED is.
    return random.Random(f"{seed}:{purpose}")


class SimulatedRng:
    """Seeded randomness. Implements `Rng`."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        """Return ``count`` seeded bytes."""
        return self._random.randbytes(count)

    def fraction(self) -> float:
        """Return a seeded number in [0, 1)."""
        return self._random.random()
