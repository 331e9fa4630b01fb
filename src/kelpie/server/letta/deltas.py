"""A model's answer while it streams, as pieces of messages.

Every piece of one attempt carries the attempt's message id, and every piece of one part (thought,
said, each call) the part's ``otid``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec

from kelpie.agents.delta_log import STREAM_KIND
from kelpie.agents.model import answer_id
from kelpie.llm.model import Delta
from kelpie.server.letta.message_types import (
    AnyMessage,
    AssistantMessage,
    ReasoningMessage,
    ToolCallMessage,
    ToolCallOut,
)
from kelpie.server.letta.message_view import (
    PART_CALLS,
    PART_CONTENT,
    PART_REASONING,
    derive_otid,
    read_time,
)
from kelpie.storage.records import StreamChunk

_decode: Final = msgspec.msgpack.Decoder(list[Delta]).decode


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt of a model call, and how far its stream was read.

    ``streamed`` holds the message types of which pieces were shown.
    """

    effect_id: str
    number: int
    run_id: str
    after: int = 0
    streamed: set[str] = field(default_factory=set[str])
    _call_ids: dict[int, str] = field(default_factory=dict[int, str])

    def take(self, chunk: StreamChunk, at_ms: int) -> list[AnyMessage]:
        """Return the pieces in one chunk; chunks come in order."""
        assert chunk.sequence > self.after, "stream chunks come in order"
        self.after = chunk.sequence
        if chunk.kind != STREAM_KIND:
            return []
        date = read_time(at_ms)
        pieces = [each for delta in _decode(chunk.body) for each in self._pieces(delta, date)]
        self.streamed.update(piece.message_type for piece in pieces)
        return pieces

    def _pieces(self, delta: Delta, date: datetime) -> list[AnyMessage]:
        pieces: list[AnyMessage] = []
        if delta.reasoning:
            head = self._head(PART_REASONING, date)
            pieces.append(ReasoningMessage(reasoning=delta.reasoning, **head))
        if delta.text:
            head = self._head(PART_CONTENT, date)
            pieces.append(AssistantMessage(content=delta.text, **head))
        if delta.call_index >= 0:
            head = self._head(PART_CALLS + delta.call_index, date)
            call = self._call(delta)
            pieces.append(ToolCallMessage(tool_call=call, tool_calls=call, **head))
        return pieces

    def _call(self, delta: Delta) -> ToolCallOut:
        if delta.call_id:
            self._call_ids[delta.call_index] = delta.call_id
        return ToolCallOut(
            name=delta.call_name or None,
            arguments=delta.call_arguments,
            tool_call_id=self._call_ids.get(delta.call_index),
        )

    def _head(self, part: int, date: datetime) -> dict[str, Any]:
        message_id = answer_id(self.effect_id, self.number)
        return {
            "id": message_id,
            "date": date,
            "otid": derive_otid(message_id, part),
            "run_id": self.run_id,
        }
