"""The Anthropic Messages wire.

It differs from the OpenAI one in shape, not in meaning: the system prompt stands apart, the returns
of parallel calls are one user message, and an answer is a list of typed blocks. Event and block
types that are unknown here are skipped, as the wire's versioning policy asks of clients.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from kelpie.core.errors import InvalidFieldError, ModelError
from kelpie.core.limits import INTEGER_MAX, MODEL_ANSWER_TOKENS_DEFAULT
from kelpie.llm.answer import AnswerBuilder, NewCallId
from kelpie.llm.model import (
    ChatMessage,
    Delta,
    FinishReason,
    ModelAnswer,
    ModelRequest,
    ToolCall,
    Usage,
)
from kelpie.llm.options import Options, read_request_options
from kelpie.llm.refusals import UNDECODABLE, error_of, read_refusal
from kelpie.llm.sse import ServerSentEvent

_VERSION: Final = "2023-06-01"
_MODELS_PAGE_MAX: Final = 1000  # the wire's own largest page; more models than any account has
_FINISHES: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "tool_use": "tool_calls",
}
"""Every other reason (``end_turn``, ``stop_sequence``, …) is an ordinary end."""

_FOREIGN_ID_CHARACTER: Final = re.compile(r"[^a-zA-Z0-9_-]")
_Count = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]


class _Usage(msgspec.Struct):
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None


class _Message(msgspec.Struct):
    model: str = ""
    usage: _Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] | None = None


class _Change(msgspec.Struct):
    """The ``delta`` of a block, or of the message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Change | None = None
    usage: _Usage | None = None
    error: Any = None


_event_decoder: Final = msgspec.json.Decoder(_Event)


class AnthropicWire:
    """Writes requests and reads answers."""

    chat_path = "/messages"
    models_path = f"/models?limit={_MODELS_PAGE_MAX}"

    def headers(self, api_key: str) -> dict[str, str]:
        """Return the headers that every request needs; ``api_key`` may be empty."""
        headers = {"anthropic-version": _VERSION}
        if api_key:
            headers["x-api-key"] = api_key
        return headers

    def encode(self, name: str, request: ModelRequest) -> bytes:
        """Return the body of a streaming call of the model ``name``.

        Raises:
            InvalidFieldError: An option is invalid, or a message has a part of unknown type.
        """
        options = read_request_options(request)
        system, messages = _encode_conversation(request.messages)
        body: dict[str, Any] = {
            "model": name,
            "max_tokens": options.max_tokens or MODEL_ANSWER_TOKENS_DEFAULT,
            "messages": messages,
            "stream": True,
        }
        if system:
            body["system"] = system
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if request.tools:
            body["tools"] = [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": tool.parameters,
                }
                for tool in request.tools
            ]
            choice = _encode_choice(options)
            if choice:
                body["tool_choice"] = choice
        return msgspec.json.encode(body)

    def assembler(self, *, new_call_id: NewCallId) -> AnthropicAssembler:
        """Return a reader for one answer."""
        return AnthropicAssembler(new_call_id=new_call_id)


class AnthropicAssembler:
    """Reads one streamed answer."""

    def __init__(self, *, new_call_id: NewCallId) -> None:
        self._answer = AnswerBuilder(new_call_id=new_call_id)
        self._calls: dict[int, int] = {}  # the wire's block index -> our call index
        self._whole_inputs: dict[int, str] = {}  # inputs that came with a block's start
        self._finish: FinishReason | None = None
        self._usage = _Usage()
        self._model = ""
        self._done = False

    @property
    def done(self) -> bool:
        """Whether ``message_stop`` has come."""
        return self._done

    def feed(self, event: ServerSentEvent) -> list[Delta]:
        """Return what ``event`` adds to the answer.

        Raises:
            ModelError: The event is an error, is malformed, or passes a limit.
        """
        if self._done:
            return []
        change = _decode_event(event)
        match change.type:
            case "content_block_delta":
                return self._change_block(change)
            case "content_block_start":
                return self._begin_block(change)
            case "content_block_stop":
                return self._end_block(change.index)
            case "message_start" if change.message is not None:
                self._model = change.message.model
                self._take_usage(change.message.usage)
            case "message_delta":
                if change.delta is not None and change.delta.stop_reason:
                    self._finish = _FINISHES.get(change.delta.stop_reason, "stop")
                self._take_usage(change.usage)
            case "message_stop":
                self._done = True
            case _:
                pass  # `ping`, and what the wire may add
        return []

    def finish(self) -> ModelAnswer:
        """Return the whole answer.

        Raises:
            ModelError: Neither a stop reason nor ``message_stop`` came (reason ``malformed``).
        """
        if self._finish is None and not self._done:
            raise ModelError("malformed", "the answer was cut off: no stop reason came")
        usage = self._usage
        cached = usage.cache_read_input_tokens or 0
        written = usage.cache_creation_input_tokens or 0
        return self._answer.build(
            finish=self._finish or "stop",
            usage=Usage(
                prompt_tokens=(usage.input_tokens or 0) + cached + written,
                completion_tokens=usage.output_tokens or 0,
                cached_tokens=cached,
            ),
            model=self._model,
        )

    def _begin_block(self, event: _Event) -> list[Delta]:
        block = event.content_block or _Block()
        match block.type:
            case "text" if block.text:
                return [self._answer.add_text(block.text)]
            case "thinking" if block.thinking:
                return [self._answer.add_reasoning(block.thinking)]
            case "tool_use":
                if event.index in self._calls:
                    raise ModelError("malformed", f"block {event.index} of the answer began twice")
                self._calls[event.index] = self._answer.call_count
                if block.input:
                    whole = msgspec.json.encode(block.input).decode()
                    self._whole_inputs[event.index] = whole
                return [self._answer.begin_call(block.id, block.name)]
            case _:
                return []

    def _change_block(self, event: _Event) -> list[Delta]:
        delta = event.delta or _Change()
        match delta.type:
            case "text_delta" if delta.text:
                return [self._answer.add_text(delta.text)]
            case "thinking_delta" if delta.thinking:
                return [self._answer.add_reasoning(delta.thinking)]
            case "input_json_delta" if delta.partial_json:
                call = self._calls.get(event.index)
                # Server-side tools stream their input too; it is no call of ours.
                return (
                    [] if call is None else [self._answer.add_arguments(call, delta.partial_json)]
                )
            case _:
                return []

    def _end_block(self, index: int) -> list[Delta]:
        whole = self._whole_inputs.pop(index, "")
        call = self._calls.get(index)
        if not whole or call is None or self._answer.call_arguments(call):
            return []
        return [self._answer.add_arguments(call, whole)]

    def _take_usage(self, usage: _Usage | None) -> None:
        """Keep the newest of each count; later events repeat some, as running totals."""
        if usage is None:
            return
        for field in _Usage.__struct_fields__:
            count = getattr(usage, field)
            if count is not None:
                setattr(self._usage, field, count)


def _decode_event(event: ServerSentEvent) -> _Event:
    try:
        decoded = _event_decoder.decode(event.data)
    except UNDECODABLE as error:
        raise ModelError("malformed", f"an event of the answer is malformed: {error}") from error
    if decoded.error or decoded.type == "error" or event.name == b"error":
        raise error_of(read_refusal(event.data))
    return decoded


def _encode_conversation(messages: tuple[ChatMessage, ...]) -> tuple[str, list[dict[str, Any]]]:
    """Return the system prompt and the turns; neighbours of one role become one turn.

    The wire wants every return of a turn's parallel calls in the one user message that follows.
    """
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            system.extend(part["text"] for part in _encode_content(message))
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _encode_blocks(message)
        if not blocks:
            continue  # the wire refuses empty turns
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        else:
            turns.append({"role": role, "content": blocks})
    return "\n\n".join(system), turns


def _encode_blocks(message: ChatMessage) -> list[dict[str, Any]]:
    blocks = _encode_content(message)
    if message.role == "tool":
        call_id = _encode_id(message.tool_call_id)
        return [{"type": "tool_result", "tool_use_id": call_id, "content": blocks}]
    return blocks + [_encode_call(call) for call in message.tool_calls]


def _encode_content(message: ChatMessage) -> list[dict[str, Any]]:
    parts = message.content
    if isinstance(parts, str):
        parts = [{"type": "text", "text": parts}]
    # The wire refuses empty text blocks.
    return [_encode_part(part, role=message.role) for part in parts if part.get("text") != ""]


def _encode_part(part: dict[str, Any], *, role: str) -> dict[str, Any]:
    if part.get("type") == "text":
        return {"type": "text", "text": part["text"]}
    if part.get("type") == "image" and role not in {"system", "assistant"}:
        source = {"type": "base64", "media_type": part["media_type"], "data": part["data"]}
        return {"type": "image", "source": source}
    raise InvalidFieldError(
        "messages", f"a part of type {part.get('type')!r} cannot be sent in a {role} message"
    )


def _encode_call(call: ToolCall) -> dict[str, Any]:
    """Return a past call; arguments that were no JSON object are kept as text under one key."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except UNDECODABLE:
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"malformed_arguments": call.arguments}
    return {
        "type": "tool_use",
        "id": _encode_id(call.id),
        "name": call.name,
        "input": arguments,
    }


def _encode_id(call_id: str) -> str:
    """Return a call id in the wire's characters; ids from another provider may have more."""
    return _FOREIGN_ID_CHARACTER.sub("_", call_id)


def _encode_choice(options: Options) -> dict[str, Any]:
    kinds = {"auto": "auto", "required": "any", "none": "none"}
    name = options.tool_choice
    if name is None and options.parallel_tool_calls is None:
        return {}
    choice: dict[str, Any] = {"type": kinds.get(name or "auto", "tool")}
    if choice["type"] == "tool":
        choice["name"] = name
    if options.parallel_tool_calls is False and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return choice
