"""An answer under construction: text, reasoning and tool calls, bounded while they grow.

Owns what all wires share. Invariants: the deltas handed out, joined, are the answer; no two calls
of one answer have the same id; ``size_bytes`` never passes its limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kelpie.core.errors import ModelError
from kelpie.core.limits import MODEL_RESPONSE_BYTES_MAX, NAME_CHARS_MAX
from kelpie.llm.model import Delta, FinishReason, ModelAnswer, ToolCall, Usage

NewCallId = Callable[[], str]
"""Returns an id that no other call has."""


@dataclass(slots=True, kw_only=True)
class _GrowingCall:
    """One tool call of which more pieces may come."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


class AnswerBuilder:
    """Collects the pieces of one answer and says what each adds."""

    def __init__(
        self, *, new_call_id: NewCallId, size_bytes_max: int = MODEL_RESPONSE_BYTES_MAX
    ) -> None:
        self._new_call_id = new_call_id
        self._size_bytes_max = size_bytes_max
        self._size_bytes = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_GrowingCall] = []
        self._call_ids: set[str] = set()

    @property
    def call_count(self) -> int:
        """How many tool calls have begun."""
        return len(self._calls)

    def add_text(self, piece: str) -> Delta:
        """Append to the text.

        Raises:
            ModelError: The answer passes its limit (reason ``too_large``).
        """
        self._grow(piece)
        self._text.append(piece)
        return Delta(text=piece)

    def add_reasoning(self, piece: str) -> Delta:
        """Append to the reasoning.

        Raises:
            ModelError: The answer passes its limit (reason ``too_large``).
        """
        self._grow(piece)
        self._reasoning.append(piece)
        return Delta(reasoning=piece)

    def begin_call(self, wire_id: str, name: str) -> Delta:
        """Begin the next tool call.

        The call keeps the provider's id unless it is empty, overlong or taken; providers send all
        three, and a transcript pairs calls with returns by id.

        Raises:
            ModelError: The answer passes its limit (reason ``too_large``).
        """
        usable = 0 < len(wire_id) <= NAME_CHARS_MAX and wire_id not in self._call_ids
        call_id = wire_id if usable else self._new_call_id()
        assert call_id not in self._call_ids, "a fresh call id was taken"
        self._grow(call_id + name)
        self._call_ids.add(call_id)
        self._calls.append(_GrowingCall(id=call_id, name=name))
        return Delta(call_index=len(self._calls) - 1, call_id=call_id, call_name=name)

    def name_call(self, index: int, name: str) -> Delta:
        """Name a call that began without a name.

        Raises:
            ModelError: The answer passes its limit (reason ``too_large``).
        """
        call = self._calls[index]
        assert not call.name, "a call is named once"
        self._grow(name)
        call.name = name
        return Delta(call_index=index, call_name=name)

    def add_arguments(self, index: int, piece: str) -> Delta:
        """Append to the arguments of the call at ``index``.

        Raises:
            ModelError: The answer passes its limit (reason ``too_large``).
        """
        self._grow(piece)
        self._calls[index].arguments.append(piece)
        return Delta(call_index=index, call_arguments=piece)

    def call_arguments(self, index: int) -> str:
        """Return the arguments of the call at ``index`` as far as they have come."""
        return "".join(self._calls[index].arguments)

    def build(self, *, finish: FinishReason, usage: Usage, model: str) -> ModelAnswer:
        """Return the whole answer; tool calls without arguments get an empty object.

        Raises:
            ModelError: A tool call never got a name (reason ``malformed``).
        """
        calls: list[ToolCall] = []
        for index, call in enumerate(self._calls):
            if not call.name:
                raise ModelError("malformed", f"tool call {index} of the answer has no name")
            arguments = "".join(call.arguments) or "{}"
            calls.append(ToolCall(id=call.id, name=call.name, arguments=arguments))
        if finish in {"stop", "tool_calls"}:
            # Some providers say "stop" beside tool calls, some "tool_calls" without any.
            finish = "tool_calls" if calls else "stop"
        return ModelAnswer(
            text="".join(self._text),
            tool_calls=tuple(calls),
            reasoning="".join(self._reasoning),
            finish=finish,
            usage=usage,
            model=model,
        )

    def _grow(self, piece: str) -> None:
        self._size_bytes += len(piece) if piece.isascii() else len(piece.encode())
        if self._size_bytes > self._size_bytes_max:
            raise ModelError(
                "too_large",
                f"the answer is larger than {self._size_bytes_max:,} bytes; "
                "set max_tokens, or ask for less at once",
            )
