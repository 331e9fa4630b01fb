"""A source of faults for tests: one fault happens so many times, once it is armed."""

from __future__ import annotations


class Failing:
    """Lets the fault ``name`` happen ``times`` times, once it was asked for ``after`` times.

    Attributes:
        is_armed: Nothing happens before.
        happened: How often it did.
    """

    def __init__(self, name: str, times: int = 1, *, after: int = 0, is_armed: bool = True) -> None:
        self.name = name
        self.times = times
        self.after = after
        self.is_armed = is_armed
        self.happened = 0

    def fires(self, name: str) -> bool:
        if name != self.name or not self.is_armed or self.happened >= self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.happened += 1
        return True
