"""The messages of the Letta dialect, stored and streamed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

Content = str | list[dict[str, Any]]


class LettaMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="message_type"):
    """What every message carries; the wire has its class's tag as ``message_type``."""

    id: str
    date: datetime
    name: str | None = None
    otid: str | None = None
    sender_id: str | None = None
    step_id: str | None = None
    run_id: str | None = None
    is_err: bool | None = None
    seq_id: int | None = None

    @property
    def message_type(self) -> str:
        """The type on the wire."""
        return str(self.__struct_config__.tag)


class SystemMessage(LettaMessage, frozen=True, kw_only=True, tag="system_message"):
    """Instructions."""

    content: str


class UserMessage(LettaMessage, frozen=True, kw_only=True, tag="user_message"):
    """What a person or a program sent."""

    content: Content


class ReasoningMessage(LettaMessage, frozen=True, kw_only=True, tag="reasoning_message"):
    """What the model thought aloud."""

    reasoning: str
    source: str = "reasoner_model"
    signature: str | None = None


class AssistantMessage(LettaMessage, frozen=True, kw_only=True, tag="assistant_message"):
    """What the model answered; while streaming, a piece of it."""

    content: Content


class ToolCallOut(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call; while streaming, a piece of it with null for what did not change."""

    name: str | None
    arguments: str | None
    tool_call_id: str | None


class ToolCallMessage(LettaMessage, frozen=True, kw_only=True, tag="tool_call_message"):
    """Tools that the model calls."""

    tool_call: ToolCallOut
    tool_calls: list[ToolCallOut] | ToolCallOut


class ToolReturnOut(msgspec.Struct, frozen=True, kw_only=True):
    """What one tool call returned."""

    tool_call_id: str
    status: str
    tool_return: str
    type: str = "tool"
    stdout: list[str] | None = None
    stderr: list[str] | None = None


class ToolReturnMessage(LettaMessage, frozen=True, kw_only=True, tag="tool_return_message"):
    """What a tool call returned."""

    tool_return: str
    status: str
    tool_call_id: str
    tool_returns: list[ToolReturnOut]
    stdout: list[str] | None = None
    stderr: list[str] | None = None


class ApprovalRequestMessage(
    LettaMessage, frozen=True, kw_only=True, tag="approval_request_message"
):
    """Tool calls that wait for a person."""

    tool_call: ToolCallOut
    tool_calls: list[ToolCallOut]


AnyMessage = (
    SystemMessage
    | UserMessage
    | ReasoningMessage
    | AssistantMessage
    | ToolCallMessage
    | ToolReturnMessage
    | ApprovalRequestMessage
)


class Ping(LettaMessage, frozen=True, kw_only=True, tag="ping"):
    """Keeps a stream alive."""


class ErrorMessage(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="message_type", tag="error_message"
):
    """Why a stream ends early, or why a run failed."""

    error_type: str
    message: str
    run_id: str
    detail: str | None = None
    seq_id: int | None = None


class StopReasonOut(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="message_type", tag="stop_reason"
):
    """Why the run stopped."""

    stop_reason: str


class UsageOut(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="message_type", tag="usage_statistics"
):
    """What the run used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    step_count: int
    run_ids: list[str]
    cache_write_tokens: int | None = None
    context_tokens: int | None = None


class LettaResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a message that did not stream."""

    messages: list[AnyMessage]
    stop_reason: StopReasonOut
    usage: UsageOut
    logprobs: None = None
    turns: None = None
