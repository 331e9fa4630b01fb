"""What a caller sent, as input for a run or as answers to what waits."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kelpie.agents.model import InputMessage
from kelpie.core.errors import InvalidFieldError
from kelpie.server.letta.requests import MessageCreate, MessageIn


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A yes or no to one tool call; without an id, to the only one that waits."""

    tool_call_id: str
    request_id: str
    approve: bool
    reason: str


Inputs = tuple[InputMessage, ...] | tuple[Answer, ...]


def read_inputs(body: MessageCreate) -> Inputs:
    """Return the messages of a request, or its answers to an approval request.

    Raises:
        InvalidFieldError: There is nothing, too much, or a mixture.
    """
    shorthand = body.role is not None or body.content is not None
    given = [body.messages is not None, body.input is not None, shorthand]
    if sum(given) != 1:
        problem = "give exactly one of messages, input, or role with content"
        raise InvalidFieldError("body.messages", problem)
    if body.input is not None:
        return (InputMessage(content=read_content("body.input", body.input)),)
    if shorthand:
        if body.content is None:
            raise InvalidFieldError("body.content", "is missing")
        content = read_content("body.content", body.content)
        return (InputMessage(role=body.role or "user", content=content),)
    return _read_list(body.messages or [])


def read_content(field: str, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return content with the dialect's parts turned into stored ones.

    Raises:
        InvalidFieldError: It is empty, or a part is of a kind that is not supported.
    """
    if not content:
        raise InvalidFieldError(field, "is empty")
    if isinstance(content, str):
        return content
    return [_read_part(f"{field}[{index}]", part) for index, part in enumerate(content)]


def _read_list(messages: Sequence[MessageIn]) -> Inputs:
    if not messages:
        raise InvalidFieldError("body.messages", "is empty")
    answers = [message for message in messages if message.type == "approval"]
    if not answers:
        return tuple(_read_message(f"body.messages[{i}]", m) for i, m in enumerate(messages))
    if len(messages) > 1:
        raise InvalidFieldError("body.messages", "an approval must be the only message")
    return _read_answers("body.messages[0]", answers[0])


def _read_message(field: str, message: MessageIn) -> InputMessage:
    if message.role is None:
        raise InvalidFieldError(f"{field}.role", "is missing")
    if message.content is None:
        raise InvalidFieldError(f"{field}.content", "is missing")
    for name in ("approvals", "approve", "approval_request_id", "reason"):
        if getattr(message, name) is not None:
            raise InvalidFieldError(f"{field}.{name}", 'needs "type": "approval"')
    return InputMessage(
        role=message.role,
        content=read_content(f"{field}.content", message.content),
        name=message.name or "",
        otid=message.otid or "",
        sender_id=message.sender_id or "",
    )


def _read_answers(field: str, message: MessageIn) -> tuple[Answer, ...]:
    request_id = message.approval_request_id or ""
    if message.approvals:
        ids = [each.tool_call_id for each in message.approvals]
        if len(set(ids)) != len(ids):
            raise InvalidFieldError(f"{field}.approvals", "answers a tool call twice")
        return tuple(
            Answer(
                tool_call_id=each.tool_call_id,
                request_id=request_id,
                approve=each.approve,
                reason=each.reason or message.reason or "",
            )
            for each in message.approvals
        )
    if message.approve is None:
        raise InvalidFieldError(f"{field}.approvals", "is missing")
    answer = Answer(
        tool_call_id="",
        request_id=request_id,
        approve=message.approve,
        reason=message.reason or "",
    )
    return (answer,)


def _read_part(field: str, part: dict[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {
            "type": "image",
            "source": {"type": "base64", "media_type": str(media_type), "data": str(data)},
        }:
            _require_base64(f"{field}.source.data", data)
            return {"type": "image", "media_type": media_type, "data": data}
        case _:
            problem = "must be a text part, or an image part with a base64 source"
            raise InvalidFieldError(field, problem)


def _require_base64(field: str, data: str) -> None:
    try:
        binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:
        raise InvalidFieldError(field, f"is not base64: {error}") from None
