"""The host's randomness: the kernel's generator. Owns no state."""

from __future__ import annotations

import os
from typing import Final

_COUNT_MAX: Final = 1_024
_FRACTION_BITS: Final = 53  # the precision of a float's mantissa


class HostRng:
    """Implements the randomness port; unpredictable, safe for keys and ids."""

    def bytes(self, count: int) -> bytes:
        """Return ``count`` random bytes (1 to 1,024)."""
        assert 1 <= count <= _COUNT_MAX, f"between 1 and {_COUNT_MAX} bytes at a time"
        return os.urandom(count)

    def fraction(self) -> float:
        """Return a uniformly distributed number in [0, 1)."""
        return (int.from_bytes(os.urandom(8), "big") >> (64 - _FRACTION_BITS)) / (
            1 << _FRACTION_BITS
        )
