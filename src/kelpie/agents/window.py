"""The window: which transcript messages a model sees. Pure functions over sequences.

An exchange is what one run wrote, from its first message to the last. The window is cut only
between exchanges, so a tool call is never separated from its return. Cut messages stay stored.
"""

from __future__ import annotations

from typing import NamedTuple

from kelpie.core.limits import CONTEXT_MESSAGES_MAX


class Window(NamedTuple):
    """Sequences in context and, of those, where exchanges begin; both ascending."""

    sequences: tuple[int, ...]
    exchanges: tuple[int, ...]


def append(
    sequences: tuple[int, ...], exchanges: tuple[int, ...], sequence: int, *, opens: bool
) -> Window:
    """Return the window with one more message, without its oldest exchanges if it was full.

    The newest exchange always stays whole: a run's own bounds keep it below the window's.
    """
    assert not sequences or sequence > sequences[-1], "messages are appended in order"
    assert exchanges or opens, "the first message in a window opens an exchange"
    starts = (*exchanges, sequence) if opens else exchanges
    grown = Window((*sequences, sequence), starts)
    excess = len(grown.sequences) - CONTEXT_MESSAGES_MAX
    if excess <= 0 or len(starts) == 1:
        return grown
    first_kept = grown.sequences[excess]
    later = [start for start in starts if start >= first_kept]
    return cut(grown, later[0] if later else starts[-1])


def cut(old: Window, first: int) -> Window:
    """Return the window from the exchange that begins at ``first``."""
    assert first in old.exchanges, "a window is cut where an exchange begins"
    kept = tuple(sequence for sequence in old.sequences if sequence >= first)
    assert kept, "an exchange has at least one message"
    return Window(kept, tuple(start for start in old.exchanges if start >= first))


def halve(old: Window) -> Window:
    """Return the window without its older half of exchanges; empty when it has only one."""
    if len(old.exchanges) <= 1:
        return Window((), ())
    return cut(old, old.exchanges[(len(old.exchanges) + 1) // 2])
