"""Settings of the client that nothing here acts on yet: refused by name, never ignored."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.core.errors import InvalidFieldError

AGENT_FIELDS: Final = (
    "block_ids",
    "compaction_settings",
    "enable_reasoner",
    "enable_sleeptime",
    "folder_ids",
    "from_template",
    "identity_ids",
    "include_base_tool_rules",
    "include_default_source",
    "initial_message_sequence",
    "last_run_completion",
    "last_run_duration_ms",
    "last_stop_reason",
    "max_reasoning_tokens",
    "memory_variables",
    "message_buffer_autoclear",
    "message_ids",
    "reasoning",
    "response_format",
    "secrets",
    "source_ids",
    "tool_exec_environment_variables",
    "tool_rules",
)
BLOCK_FIELDS: Final = ("is_template", "template_id", "template_name", "hidden")
MESSAGE_FIELDS: Final = (
    "assistant_message_tool_kwarg",
    "assistant_message_tool_name",
    "callback_url",
    "client_skills",
    "client_tools",
    "enable_thinking",
    "include_compaction_messages",
    "override_model",
    "override_system",
    "return_logprobs",
    "return_token_ids",
    "top_logprobs",
)

_ASKS_FOR_NOTHING: Final[tuple[Any, ...]] = (None, False, "", [], {})


def refuse_unsupported(request: msgspec.Struct, fields: tuple[str, ...]) -> None:
    """Check that none of ``fields`` asks for something.

    Raises:
        InvalidFieldError: One does; the error names it.
    """
    for name in fields:
        if getattr(request, name, None) not in _ASKS_FOR_NOTHING:
            raise InvalidFieldError(f"body.{name}", "is not supported by this server; leave it out")
