"""The messages of a conversation, in the words of the Letta wire, as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from kelpie.cli.errors import CommandError

_SPEAKERS: Final = {
    "user_message": "you",
    "assistant_message": "agent",
    "system_message": "system",
    "tool_call_message": "calls",
    "approval_request_message": "asks",
}


class Line(NamedTuple):
    """Who says what; the text is untrusted."""

    label: str
    text: str


class AgentFailedError(CommandError):
    """A run ended with an error that came inside its stream."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        text = str(message.get("message") or message.get("detail") or "the run failed")
        fields = {"error_type": message.get("error_type"), "run_id": message.get("run_id")}
        super().__init__("run_failed", text, fields=fields, http_status=502)


def line_of(message: Mapping[str, Any]) -> Line | None:
    """Return what a message says to a person; None for those that say nothing."""
    match message.get("message_type"):
        case "user_message" | "assistant_message" | "system_message" as kind:
            return Line(_SPEAKERS[kind], content_text(message.get("content")))
        case "reasoning_message":
            return Line("thinks", str(message.get("reasoning") or ""))
        case "tool_call_message" | "approval_request_message" as kind:
            return Line(_SPEAKERS[kind], _calls(message))
        case "tool_return_message":
            return Line("returns", str(message.get("tool_return") or ""))
        case "error_message":
            return Line("error", str(message.get("message") or message.get("detail") or ""))
        case _:
            return None


def content_text(content: object) -> str:
    """Return the text of a message's content; parts that are not text are named."""
    if not isinstance(content, list):
        return str(content or "")
    parts = cast("list[dict[str, Any]]", content)
    return "".join(str(part.get("text", f"[{part.get('type')}]")) for part in parts)


def _calls(message: Mapping[str, Any]) -> str:
    given: Any = message.get("tool_calls") or message.get("tool_call") or []
    calls = cast("list[dict[str, Any]]", given if isinstance(given, list) else [given])
    return "\n".join(_call(call) for call in calls)


def _call(call: Mapping[str, Any]) -> str:
    """Return a call, or a piece of one: in a stream the name comes before the arguments."""
    arguments = str(call.get("arguments") or "")
    return f"{call['name']} {arguments}" if call.get("name") else arguments
