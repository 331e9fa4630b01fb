"""What ``letta-client`` sends, as it sends it.

Unknown fields are refused by name. Fields that the client declares and that nothing here acts on
are accepted in the one value that asks for nothing; `kelpie.server.letta.unsupported` refuses the
others, so that no setting is accepted and then ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from kelpie.core.limits import (
    INTEGER_MAX,
    LABEL_CHARS_MAX,
    LIST_PAGE_ROWS_MAX,
    MESSAGE_TEXT_CHARS_MAX,
    NAME_CHARS_MAX,
    STEPS_PER_RUN_MAX,
    SYSTEM_PROMPT_CHARS_MAX,
)

AgentType = Literal[
    "memgpt_agent",
    "memgpt_v2_agent",
    "letta_v1_agent",
    "react_agent",
    "workflow_agent",
    "split_thread_agent",
    "sleeptime_agent",
    "voice_convo_agent",
    "voice_sleeptime_agent",
]
MessageType = Literal[
    "system_message",
    "user_message",
    "assistant_message",
    "reasoning_message",
    "hidden_reasoning_message",
    "tool_call_message",
    "tool_return_message",
    "approval_request_message",
    "approval_response_message",
    "summary_message",
    "event_message",
]
Order = Literal["asc", "desc"]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Label = Annotated[str, Meta(min_length=1, max_length=LABEL_CHARS_MAX)]
Text = Annotated[str, Meta(max_length=MESSAGE_TEXT_CHARS_MAX)]
System = Annotated[str, Meta(max_length=SYSTEM_PROMPT_CHARS_MAX)]
ShortText = Annotated[str, Meta(max_length=4_096)]
Limit = Annotated[int, Meta(ge=1, le=LIST_PAGE_ROWS_MAX)]
Size = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
Tags = Annotated[list[Name], Meta(max_length=256)]
JsonObject = dict[str, Any]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that knows all its fields."""


class ModelSettingsIn(Strict, frozen=True, kw_only=True):
    """Sampling settings; ``provider_type`` is implied by the model's handle."""

    provider_type: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_output_tokens: Size | None = None
    parallel_tool_calls: bool | None = None


class LlmConfigIn(msgspec.Struct, frozen=True, kw_only=True):
    """The deprecated model configuration; what it says beside these fields has no effect here."""

    model: Name
    context_window: Size
    model_endpoint_type: str = "openai"
    handle: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Size | None = None


class BlockCreate(Strict, frozen=True, kw_only=True):
    """A block that comes with a new agent."""

    label: Label
    value: Text
    limit: Size | None = None
    description: ShortText | None = None
    read_only: bool = False
    metadata: JsonObject | None = None
    tags: Tags | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    hidden: bool | None = None
    is_template: bool = False
    preserve_on_migration: bool | None = None
    project_id: str | None = None
    template_id: str | None = None
    template_name: str | None = None


class AgentCreate(Strict, frozen=True, kw_only=True):
    """``POST /v1/agents``."""

    name: Name | None = None
    agent_type: AgentType = "letta_v1_agent"
    system: System | None = None
    model: Name | None = None
    model_settings: ModelSettingsIn | None = None
    llm_config: LlmConfigIn | None = None
    context_window_limit: Size | None = None
    max_tokens: Size | None = None
    parallel_tool_calls: bool | None = None
    description: ShortText | None = None
    metadata: JsonObject | None = None
    tags: Tags | None = None
    timezone: Annotated[str, Meta(max_length=64)] | None = None
    tools: list[Name] | None = None
    tool_ids: list[str] | None = None
    include_base_tools: bool = True
    memory_blocks: list[BlockCreate] | None = None
    workspace: Annotated[str, Meta(max_length=4_096)] | None = None
    # Stored and given back; nothing here depends on them yet.
    embedding: Name | None = None
    embedding_config: JsonObject | None = None
    embedding_chunk_size: Size | None = None
    hidden: bool | None = None
    project: str | None = None
    project_id: str | None = None
    template: bool | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    max_files_open: Size | None = None
    per_file_view_window_char_limit: Size | None = None
    # Refused unless they ask for nothing.
    block_ids: list[str] | None = None
    compaction_settings: JsonObject | None = None
    enable_reasoner: bool | None = None
    enable_sleeptime: bool | None = None
    folder_ids: list[str] | None = None
    from_template: str | None = None
    identity_ids: list[str] | None = None
    include_base_tool_rules: bool | None = None
    include_default_source: bool | None = None
    initial_message_sequence: list[JsonObject] | None = None
    max_reasoning_tokens: int | None = None
    memory_variables: dict[str, str] | None = None
    message_buffer_autoclear: bool | None = None
    reasoning: bool | None = None
    response_format: JsonObject | None = None
    secrets: dict[str, str] | None = None
    source_ids: list[str] | None = None
    tool_exec_environment_variables: dict[str, str] | None = None
    tool_rules: list[JsonObject] | None = None


class AgentUpdate(Strict, frozen=True, kw_only=True):
    """``PATCH /v1/agents/{agent_id}``: fields that are absent stay as they are."""

    name: Name | None = None
    system: System | None = None
    model: Name | None = None
    model_settings: ModelSettingsIn | None = None
    llm_config: LlmConfigIn | None = None
    context_window_limit: Size | None = None
    max_tokens: Size | None = None
    parallel_tool_calls: bool | None = None
    description: ShortText | UnsetType | None = UNSET
    metadata: JsonObject | UnsetType | None = UNSET
    tags: Tags | None = None
    timezone: Annotated[str, Meta(max_length=64)] | None = None
    tool_ids: list[str] | None = None
    # Stored and given back.
    embedding: Name | None = None
    embedding_config: JsonObject | None = None
    hidden: bool | None = None
    project_id: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    max_files_open: Size | None = None
    per_file_view_window_char_limit: Size | None = None
    # Refused unless they ask for nothing.
    block_ids: list[str] | None = None
    compaction_settings: JsonObject | None = None
    enable_sleeptime: bool | None = None
    folder_ids: list[str] | None = None
    identity_ids: list[str] | None = None
    last_run_completion: str | None = None
    last_run_duration_ms: int | None = None
    last_stop_reason: str | None = None
    message_buffer_autoclear: bool | None = None
    message_ids: list[str] | None = None
    reasoning: bool | None = None
    response_format: JsonObject | None = None
    secrets: dict[str, str] | None = None
    source_ids: list[str] | None = None
    tool_exec_environment_variables: dict[str, str] | None = None
    tool_rules: list[JsonObject] | None = None


class BlockUpdate(Strict, frozen=True, kw_only=True):
    """``PATCH /v1/agents/{agent_id}/core-memory/blocks/{block_label}``."""

    value: Text | None = None
    limit: Size | None = None
    label: Label | None = None
    description: ShortText | UnsetType | None = UNSET
    read_only: bool | None = None
    metadata: JsonObject | UnsetType | None = UNSET
    tags: Tags | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    hidden: bool | None = None
    is_template: bool | None = None
    preserve_on_migration: bool | None = None
    project_id: str | None = None
    template_id: str | None = None
    template_name: str | None = None


class AgentListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/agents``; other filters of the client are refused by name."""

    after: str | None = None
    before: str | None = None
    limit: Limit = 50
    order: Order | None = None
    ascending: bool | None = None
    order_by: Literal["created_at"] = "created_at"
    sort_by: Literal["created_at"] = "created_at"
    name: str | None = None
    query_text: str | None = None
    tags: list[str] | None = None
    match_all_tags: bool = False
    include: list[str] | None = None
    include_relationships: list[str] | None = None


class AgentQuery(Strict, frozen=True, kw_only=True):
    """Parameters of one agent's retrieval; every relation is always included."""

    include: list[str] | None = None
    include_relationships: list[str] | None = None


class ListQuery(Strict, frozen=True, kw_only=True):
    """Cursor parameters of a list."""

    after: str | None = None
    before: str | None = None
    limit: Limit = 50
    order: Order = "desc"
    order_by: Literal["created_at"] = "created_at"


class MessageListQuery(ListQuery, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/agents/{agent_id}/messages``."""

    include_return_message_types: list[MessageType] | None = None
    include_err: bool | None = None
    use_assistant_message: bool = True
    conversation_id: Literal["default"] | None = None


class ApprovalIn(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to one tool call that waits."""

    tool_call_id: str
    approve: bool
    reason: ShortText | None = None
    type: Literal["approval"] = "approval"


class MessageIn(Strict, frozen=True, kw_only=True):
    """One entry of ``messages``: a message, or the answer to an approval request."""

    type: Literal["message", "approval"] | None = None
    role: Literal["user", "system", "assistant"] | None = None
    content: Text | list[JsonObject] | None = None
    name: Name | None = None
    otid: Annotated[str, Meta(max_length=128)] | None = None
    sender_id: Annotated[str, Meta(max_length=128)] | None = None
    approvals: list[ApprovalIn] | None = None
    approve: bool | None = None
    approval_request_id: str | None = None
    reason: ShortText | None = None
    batch_item_id: None = None
    group_id: None = None


class MessageCreate(Strict, frozen=True, kw_only=True):
    """``POST …/messages``, ``…/messages/stream`` and ``…/messages/async``."""

    messages: list[MessageIn] | None = None
    input: Text | list[JsonObject] | None = None
    role: Literal["user", "system", "assistant"] | None = None
    content: Text | list[JsonObject] | None = None
    streaming: bool = False
    stream_tokens: bool = False
    include_pings: bool = False
    background: bool = False
    max_steps: Annotated[int, Meta(ge=1, le=STEPS_PER_RUN_MAX)] | None = None
    include_return_message_types: list[MessageType] | None = None
    use_assistant_message: bool = True
    # Refused unless they ask for nothing.
    assistant_message_tool_kwarg: str | None = None
    assistant_message_tool_name: str | None = None
    callback_url: str | None = None
    client_skills: list[JsonObject] | None = None
    client_tools: list[JsonObject] | None = None
    enable_thinking: str | None = None
    include_compaction_messages: bool | None = None
    override_model: str | None = None
    override_system: str | None = None
    return_logprobs: bool | None = None
    return_token_ids: bool | None = None
    top_logprobs: int | None = None


class CancelRequest(Strict, frozen=True, kw_only=True):
    """``POST …/messages/cancel``; without ids, the active run."""

    run_ids: list[str] | None = None
