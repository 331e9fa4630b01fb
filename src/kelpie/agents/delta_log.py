"""A model's deltas on their way into the stream log.

One append is in flight at a time; what arrives meanwhile goes together into the next, so that the
first delta leaves at once and a fast model does not cost one append per token. No row is larger
than ``STREAM_ROW_BYTES_MAX``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec

from kelpie.core.errors import KelpieError
from kelpie.core.limits import KIB, STREAM_ROW_BYTES_MAX
from kelpie.effects.executor import StreamSink
from kelpie.llm.model import Delta

STREAM_KIND: Final = "delta"
_PIECE_CHARS_MAX: Final = 8 * KIB
_ROW_ROOM_BYTES: Final = 16  # the list's own header
_encode: Final = msgspec.msgpack.Encoder().encode

assert _PIECE_CHARS_MAX * 4 + KIB < STREAM_ROW_BYTES_MAX, "one piece fits a row"


class DeltaLog:
    """Collects deltas and appends them until closed.

    ``failure`` is the error that ended it early; later deltas are dropped then.
    """

    __slots__ = ("_closed", "_pending", "_sink", "_wake", "failure")

    def __init__(self, sink: StreamSink) -> None:
        self._sink = sink
        self._pending: list[Delta] = []
        self._wake = asyncio.Event()
        self._closed = False
        self.failure: KelpieError | None = None

    def add(self, delta: Delta) -> None:
        """Take a delta; it is appended soon, in order."""
        assert not self._closed, "a closed log takes nothing"
        self._pending.append(delta)
        self._wake.set()

    def close(self) -> None:
        """Take nothing more; ``run`` returns once the rest is durable."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Append deltas until the log is closed and empty, or an append fails."""
        while not self._closed or self._pending:
            await self._wake.wait()
            self._wake.clear()
            batch, self._pending = self._pending, []
            try:
                for body in pack_deltas(batch):
                    await self._sink(STREAM_KIND, body)
            except KelpieError as error:
                self.failure = error
                return


def pack_deltas(deltas: list[Delta]) -> Iterator[bytes]:
    """Yield rows (msgpack lists of deltas) that hold ``deltas`` in order, each within its limit."""
    row: list[Delta] = []
    size = _ROW_ROOM_BYTES
    for delta in deltas:
        for piece in _split(delta):
            piece_size = len(_encode(piece))
            if row and size + piece_size > STREAM_ROW_BYTES_MAX:
                yield _encode(row)
                row, size = [], _ROW_ROOM_BYTES
            row.append(piece)
            size += piece_size
    if row:
        yield _encode(row)


def _split(delta: Delta) -> Iterator[Delta]:
    """Yield ``delta``, in pieces if it is long; a call's id and name come with its first piece."""
    total = len(delta.text) + len(delta.reasoning) + len(delta.call_arguments)
    if total <= _PIECE_CHARS_MAX:
        yield delta
        return
    for text in _pieces(delta.reasoning):
        yield Delta(reasoning=text)
    for text in _pieces(delta.text):
        yield Delta(text=text)
    if delta.call_index < 0:
        return
    yield msgspec.structs.replace(delta, text="", reasoning="", call_arguments="")
    for text in _pieces(delta.call_arguments):
        yield Delta(call_index=delta.call_index, call_arguments=text)


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE_CHARS_MAX):
        yield text[start : start + _PIECE_CHARS_MAX]
