"""Server-sent events, parsed from byte chunks that may be cut anywhere.

Owns the framing only: it never decodes JSON and never looks into the data, so a UTF-8 character
cut in half is whole again before anybody decodes it. Invariants: the events do not depend on where
the chunks were cut; memory stays within one event and the chunk in hand.

Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kelpie.core.errors import ModelError
from kelpie.core.limits import MODEL_EVENT_BYTES_MAX

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event: its type (empty when the stream names none) and its data lines joined."""

    name: bytes
    data: bytes


class SseParser:
    """Turns the bytes of one stream into its events, as they complete."""

    def __init__(self, *, event_bytes_max: int = MODEL_EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._tail: list[bytes] = []  # pieces of the line that has not ended
        self._data: list[bytes] = []  # data lines of the event that has not ended
        self._name = b""
        self._tail_bytes = 0
        self._data_bytes = 0  # each line counts one more, so that empty lines are bounded too
        self._skip_line_feed = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Return the events that ``chunk`` completes, in order; often none.

        Raises:
            ModelError: One event is larger than its limit (reason ``too_large``).
        """
        chunk = self._normalize(chunk)
        lines = chunk.split(b"\n")
        if len(lines) == 1:
            self._keep_tail(chunk)
            return []
        lines[0] = self._join_tail(lines[0])
        last = lines.pop()
        events: list[ServerSentEvent] = []
        for line in lines:
            if line:
                self._take_line(line)
            elif self._data:
                events.append(self._complete())
            else:
                self._name = b""
        self._keep_tail(last)
        return events

    def close(self) -> list[ServerSentEvent]:
        """Return the event that the end of the stream left open, if any.

        The specification drops it. Some servers end without the last blank line, and half an event
        is no valid JSON, so it is handed on for the decoder to judge.
        """
        if self._tail:
            self._take_line(self._join_tail(b""))
        return [self._complete()] if self._data else []

    def _normalize(self, chunk: bytes) -> bytes:
        """Return ``chunk`` with every line ending as one line feed, across chunk borders."""
        if not chunk:
            return chunk
        if self._skip_line_feed and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._skip_line_feed = False
            if not chunk:
                return chunk
        self._skip_line_feed = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _keep_tail(self, piece: bytes) -> None:
        if piece:
            self._tail.append(piece)
            self._tail_bytes += len(piece)
        self._check_size(self._tail_bytes + self._data_bytes)

    def _join_tail(self, piece: bytes) -> bytes:
        """Return the line that ``piece`` ends, and forget its earlier pieces."""
        if self._tail:
            self._tail.append(piece)
            piece = b"".join(self._tail)
            self._tail.clear()
            self._tail_bytes = 0
        if self._at_start:
            self._at_start = False
            piece = piece.removeprefix(_BYTE_ORDER_MARK)
        return piece

    def _take_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
        elif field == b"event":
            self._name = value
        # A comment has an empty field name; `id` and `retry` concern reconnecting browsers only.

    def _complete(self) -> ServerSentEvent:
        data = b"\n".join(self._data) if len(self._data) > 1 else self._data[0]
        self._check_size(len(data))
        event = ServerSentEvent(self._name, data)
        self._data.clear()
        self._data_bytes = 0
        self._name = b""
        return event

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._event_bytes_max:
            raise ModelError(
                "too_large",
                f"one event of the answer is larger than {self._event_bytes_max:,} bytes; "
                "ask for a shorter answer",
            )
