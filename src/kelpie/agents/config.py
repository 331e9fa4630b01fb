"""What a configuration and a request may hold, checked before anything changes."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from kelpie.agents.model import AgentConfig, InputMessage, StartRun, TranscriptMessage
from kelpie.core import limits
from kelpie.core.errors import ConflictError, InvalidFieldError, LimitExceededError
from kelpie.core.quoting import quote_text
from kelpie.memory.blocks import Block, check_blocks
from kelpie.tools.registry import ToolRegistry

_RUN_ID: Final = re.compile(r"[A-Za-z0-9._:@~+-]+\Z")
_OPTIONS: Final = ("temperature", "max_tokens", "parallel_tool_calls", "tool_choice")
_PART_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "text": ("text",),
    "image": ("media_type", "data"),
}


def change_config(config: AgentConfig, changes: dict[str, Any]) -> AgentConfig:
    """Return ``config`` with fields replaced; check it afterwards.

    Raises:
        InvalidFieldError: A field is unknown or has the wrong type.
    """
    known = AgentConfig.__struct_fields__
    for field in changes:
        if field not in known:
            problem = f"is unknown; fields are {', '.join(known)}"
            raise InvalidFieldError(f"config.{field[:64]}", problem)
    try:
        return msgspec.convert({**msgspec.to_builtins(config), **changes}, AgentConfig)
    except msgspec.ValidationError as error:
        raise InvalidFieldError("config", str(error)) from error


def check_config(config: AgentConfig, blocks: tuple[Block, ...], tools: ToolRegistry) -> None:
    """Return if an agent may be configured so.

    Raises:
        InvalidFieldError: A field is empty, malformed, or names a tool that does not exist.
        LimitExceededError: A field, the blocks or all of it together are too large.
        ConflictError: Two blocks have the same label.
    """
    _check_texts(config)
    _check_tools(config, tools)
    _check_numbers(config)
    check_blocks(blocks)
    size = len(_encode("config", [config, blocks]))
    _check_size("config", size, limits.CONFIG_BYTES_MAX, "bytes")


def check_request(message: StartRun) -> None:
    """Return if a run may begin with these messages.

    Raises:
        InvalidFieldError: There is no message, or the run's id is malformed.
        LimitExceededError: There are too many messages, or they are too large.
    """
    _check_size("run_id", len(message.run_id), limits.NAME_CHARS_MAX, "characters")
    if not _RUN_ID.match(message.run_id):
        raise InvalidFieldError("run_id", "must be one or more of A-Z a-z 0-9 . _ : @ ~ + -")
    count = len(message.messages)
    if count == 0:
        raise InvalidFieldError("messages", "must hold at least one message")
    _check_size("messages", count, limits.MESSAGES_PER_RUN_MAX, "messages")
    if not 0 <= message.steps_max <= limits.STEPS_PER_RUN_MAX:
        problem = f"{message.steps_max} must be from 0 (the agent's own) to"
        raise InvalidFieldError("steps_max", f"{problem} {limits.STEPS_PER_RUN_MAX}")
    total = 0
    for index, each in enumerate(message.messages):
        total += _check_input(f"messages[{index}]", each)
    _check_size("messages", total, limits.RUN_INPUT_BYTES_MAX, "bytes")


def read_options(config: AgentConfig) -> dict[str, Any]:
    """Return the provider-neutral sampling settings of a configuration."""
    settings = config.model_settings
    return {key: settings[key] for key in _OPTIONS if settings.get(key) is not None}


def measure(message: TranscriptMessage | InputMessage) -> int:
    """Return a message's stored size in bytes."""
    return len(_encode("messages", message))


def _check_input(field: str, message: InputMessage) -> int:
    if isinstance(message.content, str):
        chars = len(message.content)
        _check_size(f"{field}.content", chars, limits.MESSAGE_TEXT_CHARS_MAX, "characters")
    if not message.content:
        raise InvalidFieldError(f"{field}.content", "must not be empty")
    parts = message.content if isinstance(message.content, list) else []
    for index, part in enumerate(parts):
        fields = _PART_FIELDS.get(part.get("type", ""), ())
        if not fields or not all(isinstance(part.get(name), str) for name in fields):
            problem = "must be a text part (text) or an image part (media_type, data)"
            raise InvalidFieldError(f"{field}.content[{index}]", problem)
    size = len(_encode(field, message))
    _check_size(field, size, limits.MESSAGE_ROW_BYTES_MAX, "bytes")
    return size


def _check_texts(config: AgentConfig) -> None:
    if not config.name.strip():
        raise InvalidFieldError("name", "must not be empty")
    _check_size("name", len(config.name), limits.NAME_CHARS_MAX, "characters")
    _check_size("system", len(config.system), limits.SYSTEM_PROMPT_CHARS_MAX, "characters")
    _check_size("model", len(config.model), limits.NAME_CHARS_MAX, "characters")
    provider, slash, name = config.model.partition("/")
    if config.model and not (provider and slash and name):
        raise InvalidFieldError("model", f"{config.model!r} must read <provider>/<name>")
    _check_size("workspace", len(config.workspace), limits.PATH_BYTES_MAX, "characters")
    path = config.workspace
    if path and (not path.startswith("/") or "\0" in path or ".." in path.split("/")):
        raise InvalidFieldError("workspace", f"{quote_text(path)} must be an absolute directory")


def _check_tools(config: AgentConfig, tools: ToolRegistry) -> None:
    _check_size("tools", len(config.tools), limits.TOOLS_PER_AGENT_MAX, "tools")
    if len(set(config.tools)) != len(config.tools):
        raise ConflictError("tools: a name appears twice")
    for name in config.tools:
        if name not in tools:
            problem = f"{name[:64]!r} does not exist; tools are {', '.join(tools.names)}"
            raise InvalidFieldError("tools", problem)


def _check_numbers(config: AgentConfig) -> None:
    bounds = (
        ("context_window", config.context_window, limits.INTEGER_MAX),
        ("steps_max", config.steps_max, limits.STEPS_PER_RUN_MAX),
        ("tokens_max", config.tokens_max, limits.TOKENS_PER_RUN_MAX),
    )
    for field, value, bound in bounds:
        if not 1 <= value <= bound:
            raise InvalidFieldError(field, f"{value} must be from 1 to {bound:,}")


def _check_size(field: str, actual: int, limit: int, unit: str) -> None:
    if actual > limit:
        raise LimitExceededError(field, actual=actual, limit=limit, unit=unit)


def _encode(field: str, value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (UnicodeEncodeError, OverflowError, TypeError, RecursionError) as error:
        raise InvalidFieldError(field, f"cannot be stored: {error}") from error
