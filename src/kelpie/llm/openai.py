"""The OpenAI chat-completions wire, as OpenAI and the many servers that imitate it speak it.

Imitations differ in how they cut tool calls: without an index, with one index for all, with an id
in every piece, whole calls at once. `_CallPieces` owns those differences and nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from kelpie.core.errors import InvalidFieldError, ModelError
from kelpie.core.limits import INTEGER_MAX, KIB
from kelpie.llm.answer import AnswerBuilder, NewCallId
from kelpie.llm.model import (
    ChatMessage,
    Delta,
    FinishReason,
    ModelAnswer,
    ModelRequest,
    ToolSchema,
    Usage,
)
from kelpie.llm.options import read_request_options
from kelpie.llm.refusals import UNDECODABLE, error_of, read_refusal
from kelpie.llm.sse import ServerSentEvent

_DONE: Final = b"[DONE]"
_FINISHES: Final[dict[str, FinishReason]] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
"""Every other reason (``stop``, ``eos``, ``end_turn``, …) is an ordinary end."""

_WHOLE_CHARS_MAX: Final = 64 * KIB  # a longer call's end is not looked for: linear time
_Count = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallPiece(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Piece(msgspec.Struct):
    """A choice's ``delta``, or its whole ``message`` from servers that do not stream."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Piece | None = None
    message: _Piece | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: _Count | None = None


class _Chunk(msgspec.Struct):
    object: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_chunk_decoder: Final = msgspec.json.Decoder(_Chunk)


class OpenAiWire:
    """Writes requests and reads answers; ``output_limit_field`` is what ``max_tokens`` is called.

    OpenAI's own newer models refuse ``max_tokens``, most imitations know nothing else.
    """

    chat_path = "/chat/completions"
    models_path = "/models"

    def __init__(self, *, output_limit_field: str = "max_tokens") -> None:
        self._output_limit_field = output_limit_field

    def headers(self, api_key: str) -> dict[str, str]:
        """Return the headers that every request needs; ``api_key`` may be empty."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    def encode(self, name: str, request: ModelRequest) -> bytes:
        """Return the body of a streaming call of the model ``name``.

        Raises:
            InvalidFieldError: An option is invalid, or a tool's return holds an image.
        """
        options = read_request_options(request)
        body: dict[str, Any] = {
            "model": name,
            "messages": [_encode_message(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.max_tokens is not None:
            body[self._output_limit_field] = options.max_tokens
        if request.tools:
            body["tools"] = [_encode_tool(tool) for tool in request.tools]
            if options.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = options.parallel_tool_calls
            if options.tool_choice is not None:
                body["tool_choice"] = _encode_choice(options.tool_choice)
        return msgspec.json.encode(body)

    def assembler(self, *, new_call_id: NewCallId) -> OpenAiAssembler:
        """Return a reader for one answer."""
        return OpenAiAssembler(new_call_id=new_call_id)


class OpenAiAssembler:
    """Reads one answer, streamed or whole."""

    def __init__(self, *, new_call_id: NewCallId) -> None:
        self._answer = AnswerBuilder(new_call_id=new_call_id)
        self._calls = _CallPieces(self._answer)
        self._finish: FinishReason | None = None
        self._usage = Usage()
        self._model = ""
        self._done = False

    @property
    def done(self) -> bool:
        """Whether ``[DONE]`` has come."""
        return self._done

    def feed(self, event: ServerSentEvent) -> list[Delta]:
        """Return what ``event`` adds to the answer.

        Raises:
            ModelError: The event is an error, is malformed, or passes a limit.
        """
        if self._done:
            return []
        if event.data.strip() == _DONE:
            self._done = True
            return []
        chunk = _decode_chunk(event)
        if chunk.model:
            self._model = chunk.model
        if chunk.usage is not None:
            self._usage = _read_usage(chunk.usage)
        deltas: list[Delta] = []
        for choice in chunk.choices or ():
            if choice.index == 0:  # only one choice is ever asked for
                self._take_choice(choice, deltas)
        return deltas

    def finish(self) -> ModelAnswer:
        """Return the whole answer.

        Raises:
            ModelError: Neither a finish reason nor ``[DONE]`` came (reason ``malformed``).
        """
        if self._finish is None and not self._done:
            raise ModelError("malformed", "the answer was cut off: no finish reason, no [DONE]")
        return self._answer.build(
            finish=self._finish or "stop", usage=self._usage, model=self._model
        )

    def _take_choice(self, choice: _Choice, deltas: list[Delta]) -> None:
        piece = choice.delta or choice.message
        if piece is not None:
            reasoning = piece.reasoning_content or piece.reasoning
            if reasoning:
                deltas.append(self._answer.add_reasoning(reasoning))
            text = _read_content(piece.content) + (piece.refusal or "")
            if text:
                deltas.append(self._answer.add_text(text))
            for call in piece.tool_calls or ():
                self._calls.take(call, deltas)
        if choice.finish_reason:
            self._finish = _FINISHES.get(choice.finish_reason, "stop")


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One call as the provider cuts it; ``index`` is its place in the answer."""

    index: int
    wire_index: int | None
    wire_id: str
    name: str
    size_chars: int = 0


class _CallPieces:
    """Decides which tool call a piece belongs to."""

    def __init__(self, answer: AnswerBuilder) -> None:
        self._answer = answer
        self._slots: list[_Slot] = []

    def take(self, piece: _CallPiece, deltas: list[Delta]) -> None:
        """Add one piece to the call it belongs to, or begin a call with it."""
        function = piece.function or _Function()
        slot = self._find(piece, function.name or "")
        if slot is None:
            slot = self._begin(piece, function.name or "", deltas)
        elif function.name and not slot.name:
            slot.name = function.name
            deltas.append(self._answer.name_call(slot.index, slot.name))
        slot.wire_id = slot.wire_id or piece.id or ""
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            slot.size_chars += len(arguments)
            deltas.append(self._answer.add_arguments(slot.index, arguments))

    def _begin(self, piece: _CallPiece, name: str, deltas: list[Delta]) -> _Slot:
        slot = _Slot(
            index=len(self._slots), wire_index=piece.index, wire_id=piece.id or "", name=name
        )
        self._slots.append(slot)
        deltas.append(self._answer.begin_call(slot.wire_id, name))
        return slot

    def _find(self, piece: _CallPiece, name: str) -> _Slot | None:
        """Return the call that ``piece`` continues, None when it begins one."""
        newest_first = reversed(self._slots)
        if piece.index is not None:
            slot = next((slot for slot in newest_first if slot.wire_index == piece.index), None)
            if slot is None or not (name and piece.id and slot.wire_id):
                return slot
            # Another id, with a name, under a known index: a server that numbers every call 0.
            return slot if piece.id == slot.wire_id else None
        if piece.id:
            slot = next((slot for slot in newest_first if slot.wire_id == piece.id), None)
        else:
            slot = next(newest_first, None)
        # Without an index a name begins a call, unless it repeats that of a call still open.
        if slot is None or not (name and slot.name):
            return slot
        return slot if name == slot.name and not self._is_whole(slot) else None

    def _is_whole(self, slot: _Slot) -> bool:
        if slot.size_chars > _WHOLE_CHARS_MAX:
            return False
        arguments = self._answer.call_arguments(slot.index)
        try:
            msgspec.json.decode(arguments)
        except UNDECODABLE:
            return False
        return True


def _decode_chunk(event: ServerSentEvent) -> _Chunk:
    try:
        chunk = _chunk_decoder.decode(event.data)
    except UNDECODABLE as error:
        raise ModelError("malformed", f"a chunk of the answer is malformed: {error}") from error
    if chunk.error or chunk.object == "error" or event.name == b"error":
        raise error_of(read_refusal(event.data))
    return chunk


def _read_usage(usage: _Usage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (prompt.cached_tokens if prompt else None) or usage.prompt_cache_hit_tokens
    return Usage(
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=cached or 0,
        reasoning_tokens=(completion.reasoning_tokens if completion else None) or 0,
    )


def _read_content(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return content or ""


def _encode_message(message: ChatMessage) -> dict[str, Any]:
    encoded: dict[str, Any] = {"role": message.role, "content": _encode_content(message)}
    if message.role == "tool":
        encoded["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        encoded["content"] = encoded["content"] or None
        encoded["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return encoded


def _encode_content(message: ChatMessage) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    return [_encode_part(part, role=message.role) for part in message.content]


def _encode_part(part: dict[str, Any], *, role: str) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part["text"]}
    if part.get("type") == "image" and role != "tool":
        url = f"data:{part['media_type']};base64,{part['data']}"
        return {"type": "image_url", "image_url": {"url": url}}
    raise InvalidFieldError(
        "messages", f"a part of type {part.get('type')!r} cannot be sent in a {role} message"
    )


def _encode_tool(tool: ToolSchema) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}


def _encode_choice(choice: str) -> str | dict[str, Any]:
    if choice in {"auto", "required", "none"}:
        return choice
    return {"type": "function", "function": {"name": choice}}
