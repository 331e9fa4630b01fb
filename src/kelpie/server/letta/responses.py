"""What ``letta-client`` reads: agents, blocks, tools, runs. Every declared field is present."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from kelpie.server.letta.message_types import ApprovalRequestMessage


class Out(msgspec.Struct, frozen=True, kw_only=True):
    """A response object."""


class BlockOut(Out, frozen=True, kw_only=True):
    """A core memory block."""

    id: str
    value: str
    label: str
    limit: int
    description: str | None
    read_only: bool
    metadata: dict[str, Any]
    tags: tuple[str, ...]
    is_template: bool = False
    hidden: bool | None = None
    base_template_id: str | None = None
    created_by_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None
    last_updated_by_id: str | None = None
    preserve_on_migration: bool | None = None
    project_id: str | None = None
    template_id: str | None = None
    template_name: str | None = None


class MemoryOut(Out, frozen=True, kw_only=True):
    """The agent's blocks once more, as older clients read them."""

    blocks: list[BlockOut]
    agent_type: str
    file_blocks: tuple[()] = ()
    git_enabled: bool = False
    prompt_template: str = ""


class ToolOut(Out, frozen=True, kw_only=True):
    """A tool of an agent."""

    id: str
    name: str
    description: str
    json_schema: dict[str, Any]
    args_json_schema: dict[str, Any]
    tool_type: str = "letta_builtin"
    source_type: str = "python"
    source_code: str | None = None
    tags: tuple[str, ...] = ()
    return_char_limit: int | None = None
    default_requires_approval: bool | None = None
    enable_parallel_execution: bool | None = None
    created_by_id: str | None = None
    last_updated_by_id: str | None = None
    metadata_: dict[str, Any] = {}
    npm_requirements: tuple[()] | None = None
    pip_requirements: tuple[()] | None = None
    project_id: str | None = None


class LlmConfigOut(Out, frozen=True, kw_only=True):
    """The model of an agent, as older clients read it."""

    model: str
    handle: str
    model_endpoint_type: str
    provider_name: str
    context_window: int
    temperature: float | None
    max_tokens: int | None
    parallel_tool_calls: bool | None
    model_endpoint: str | None = None
    provider_category: str = "base"
    compatibility_type: str | None = None
    display_name: str | None = None
    effort: str | None = None
    enable_reasoner: bool | None = None
    frequency_penalty: float | None = None
    max_reasoning_tokens: int | None = None
    model_wrapper: str | None = None
    put_inner_thoughts_in_kwargs: bool = False
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    return_logprobs: bool = False
    return_token_ids: bool = False
    strict: bool = False
    tier: str | None = None
    tool_call_parser: str | None = None
    top_logprobs: int | None = None
    verbosity: str | None = None


class ModelSettingsOut(Out, frozen=True, kw_only=True):
    """Sampling settings of an agent."""

    provider_type: str
    temperature: float | None
    max_output_tokens: int | None
    parallel_tool_calls: bool | None


class AgentOut(Out, frozen=True, kw_only=True):
    """An agent. ``workspace`` is Kelpie's own addition."""

    id: str
    name: str
    agent_type: str
    system: str
    blocks: list[BlockOut]
    memory: MemoryOut
    tools: list[ToolOut]
    tags: tuple[str, ...]
    llm_config: LlmConfigOut
    model: str
    model_settings: ModelSettingsOut | None
    description: str | None
    metadata: dict[str, Any]
    timezone: str
    message_ids: list[str]
    workspace: str | None
    created_at: datetime
    updated_at: datetime
    last_run_completion: datetime | None
    last_run_duration_ms: int | None
    last_stop_reason: str | None
    pending_approval: ApprovalRequestMessage | None
    embedding: str | None = None
    embedding_config: dict[str, Any] | None = None
    hidden: bool | None = None
    project_id: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    max_files_open: int | None = None
    per_file_view_window_char_limit: int | None = None
    compaction_settings: dict[str, Any] | None = None
    created_by_id: str | None = None
    deployment_id: str | None = None
    enable_sleeptime: bool = False
    entity_id: str | None = None
    identities: tuple[()] = ()
    identity_ids: tuple[()] = ()
    last_updated_by_id: str | None = None
    managed_group: None = None
    message_buffer_autoclear: bool = False
    multi_agent_group: None = None
    response_format: dict[str, Any] | None = None
    secrets: tuple[()] = ()
    sources: tuple[()] = ()
    tool_exec_environment_variables: tuple[()] = ()
    tool_rules: tuple[()] = ()


class RunOut(Out, frozen=True, kw_only=True):
    """A run."""

    id: str
    agent_id: str
    status: str
    stop_reason: str | None
    background: bool
    created_at: datetime
    completed_at: datetime | None
    total_duration_ns: int | None
    metadata: dict[str, Any]
    base_template_id: str | None = None
    callback_error: str | None = None
    callback_sent_at: datetime | None = None
    callback_status_code: int | None = None
    callback_url: str | None = None
    conversation_id: str | None = None
    request_config: dict[str, Any] | None = None
    ttft_ns: int | None = None
