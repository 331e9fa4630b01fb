"""When a failed model call is tried again, and how long that waits.

Owns the deadline, the back-off and the reading of ``retry-after``; decides nothing about which
errors are transient. Invariant: no wait ends after the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from kelpie.core.limits import (
    MODEL_RETRIES_MAX,
    MODEL_RETRY_DELAY_MS_MAX,
    MODEL_RETRY_DELAY_MS_MIN,
)
from kelpie.ports.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently a call is repeated."""

    retries_max: int = MODEL_RETRIES_MAX
    delay_ms_min: int = MODEL_RETRY_DELAY_MS_MIN
    delay_ms_max: int = MODEL_RETRY_DELAY_MS_MAX

    def delay_ms(self, *, retry: int, asked_ms: int | None, fraction: float) -> int:
        """Return how long to wait before retry number ``retry`` (from 1), in milliseconds.

        Without a wish of the provider the delay is drawn from the whole of an exponentially
        growing range (full jitter); ``fraction`` in [0, 1) is the draw. A provider's wish is kept
        in full, with a little jitter on top, so that a crowd it sent away does not return at once.
        """
        assert retry >= 1, "retries count from 1"
        assert 0 <= fraction < 1, "a draw is in [0, 1)"
        if asked_ms is not None:
            return asked_ms + int(fraction * self.delay_ms_min)
        ceiling_ms = min(self.delay_ms_max, self.delay_ms_min * 2 ** (retry - 1))
        return int(fraction * ceiling_ms)


class Deadline:
    """A moment on the clock that never goes back."""

    def __init__(self, *, clock: Clock, timeout_ms: int) -> None:
        self._clock = clock
        self._ends_ns = clock.boot_ns() + timeout_ms * 1_000_000

    def remaining_ms(self) -> int:
        """Return the milliseconds that are left; zero when the deadline has passed."""
        return max(0, (self._ends_ns - self._clock.boot_ns()) // 1_000_000)


def read_retry_after_ms(headers: Mapping[str, str], *, now_ms: int) -> int | None:
    """Return how long a response asks to wait, in milliseconds >= 0; None if it does not say.

    Reads ``retry-after-ms``, then ``retry-after`` in seconds or as an HTTP date; ``headers`` have
    lower-case names, ``now_ms`` is wall time.

    Source: RFC 9110, section 10.2.3.
    """
    exact = _read_number(headers.get("retry-after-ms", ""))
    if exact is not None:
        return round(exact)
    text = headers.get("retry-after", "")
    seconds = _read_number(text)
    if seconds is not None:
        return round(seconds * 1000)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0, round(moment.timestamp() * 1000) - now_ms)


def _read_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None
