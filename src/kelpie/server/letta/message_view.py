"""Transcript messages as the Letta dialect shows them.

One stored message becomes up to three on the wire (what the model thought, said and called); they
share its id, which is therefore the cursor, and differ in ``otid``, which follows from the id.
Pure functions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from kelpie.agents.model import TranscriptMessage
from kelpie.core.ids import derive_uuid
from kelpie.effects.model import EffectRecord
from kelpie.llm.model import ToolCall
from kelpie.server.letta.message_types import (
    AnyMessage,
    ApprovalRequestMessage,
    AssistantMessage,
    Content,
    ReasoningMessage,
    SystemMessage,
    ToolCallMessage,
    ToolCallOut,
    ToolReturnMessage,
    ToolReturnOut,
    UserMessage,
)

PART_REASONING: Final = 0
PART_CONTENT: Final = 1
PART_CALLS: Final = 2


def read_time(at_ms: int) -> datetime:
    """Return wall milliseconds as a date."""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC)


def derive_otid(message_id: str, part: int) -> str:
    """Return the ``otid`` of one part of a message; the same at every reading."""
    seed = hashlib.blake2b(message_id.encode(), digest_size=16).digest()
    return derive_uuid(seed, part)


def approval_request_id(effect_id: str) -> str:
    """Return the message id of the request to approve an effect."""
    return f"message-{effect_id.partition('-')[2]}"


def view_message(message: TranscriptMessage) -> list[AnyMessage]:
    """Return what one stored message is on the wire, in order."""
    match message.role:
        case "system":
            return [SystemMessage(content=_plain(message.content), **_head(message, PART_CONTENT))]
        case "user":
            content = view_content(message.content)
            head = _head(message, PART_CONTENT)
            head["otid"] = message.otid or head["otid"]
            return [UserMessage(content=content, **head)]
        case "assistant":
            return _view_assistant(message)
        case "tool":
            return [_view_return(message)]


def view_messages(
    messages: Sequence[TranscriptMessage], kinds: Collection[str] | None
) -> list[AnyMessage]:
    """Return messages on the wire, only of these types if any are given."""
    shown = [view for message in messages for view in view_message(message)]
    if kinds is None:
        return shown
    return [view for view in shown if view.message_type in kinds]


def view_call(call: ToolCall) -> ToolCallOut:
    """Return a tool call."""
    return ToolCallOut(name=call.name, arguments=call.arguments, tool_call_id=call.id)


def view_approval(
    records: Sequence[tuple[ToolCall, EffectRecord]], *, run_id: str, step_id: str
) -> ApprovalRequestMessage:
    """Return the request to approve these calls, which wait as these effects."""
    assert records, "a request is about at least one call"
    first = records[0][1]
    message_id = approval_request_id(first.effect_id)
    calls = [view_call(call) for call, _ in records]
    return ApprovalRequestMessage(
        id=message_id,
        date=read_time(first.updated_ms),
        tool_call=calls[0],
        tool_calls=calls,
        otid=derive_otid(message_id, PART_CALLS),
        run_id=run_id,
        step_id=step_id,
    )


def view_content(content: str | list[dict[str, Any]]) -> Content:
    """Return stored content in the dialect's parts."""
    if isinstance(content, str):
        return content
    return [_view_part(part) for part in content]


def _view_part(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") != "image":
        return {"type": "text", "text": part.get("text", ""), "signature": None}
    source = {
        "type": "base64",
        "media_type": part.get("media_type", ""),
        "data": part.get("data", ""),
        "detail": None,
    }
    return {"type": "image", "source": source}


def _plain(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if "text" in part)


def _head(message: TranscriptMessage, part: int) -> dict[str, Any]:
    return {
        "id": message.id,
        "date": read_time(message.at_ms),
        "name": message.name or None,
        "otid": derive_otid(message.id, part),
        "sender_id": message.sender_id or None,
        "step_id": message.step_id or None,
        "run_id": message.run_id or None,
    }


def _view_assistant(message: TranscriptMessage) -> list[AnyMessage]:
    shown: list[AnyMessage] = []
    if message.reasoning:
        head = _head(message, PART_REASONING)
        shown.append(ReasoningMessage(reasoning=message.reasoning, **head))
    if message.content or not message.tool_calls:
        head = _head(message, PART_CONTENT)
        shown.append(AssistantMessage(content=view_content(message.content), **head))
    if message.tool_calls:
        calls = [view_call(call) for call in message.tool_calls]
        head = _head(message, PART_CALLS)
        shown.append(ToolCallMessage(tool_call=calls[0], tool_calls=calls, **head))
    return shown


def _view_return(message: TranscriptMessage) -> ToolReturnMessage:
    text = _plain(message.content)
    status = message.status or "success"
    call_id = message.tool_call_id
    answer = ToolReturnOut(tool_call_id=call_id, status=status, tool_return=text)
    return ToolReturnMessage(
        tool_return=text,
        status=status,
        tool_call_id=call_id,
        tool_returns=[answer],
        **_head(message, PART_CONTENT),
    )
