"""Agents, blocks, tools and runs as the Letta dialect shows them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from kelpie.agents.model import AgentConfig, AgentState, Run
from kelpie.core.ids import ActorId, derive_uuid
from kelpie.memory.blocks import Block
from kelpie.server.letta.message_types import ApprovalRequestMessage
from kelpie.server.letta.message_view import read_time
from kelpie.server.letta.responses import (
    AgentOut,
    BlockOut,
    LlmConfigOut,
    MemoryOut,
    ModelSettingsOut,
    RunOut,
    ToolOut,
)
from kelpie.server.letta.transcript import read_ids
from kelpie.server.ports import ToolInfo
from kelpie.storage.protocol import Store

CACHED_AGENTS_MAX: Final = 4_096  # agents whose context's message ids are remembered

ENDPOINT_TYPES: Final = frozenset(
    {
        "openai",
        "anthropic",
        "google_ai",
        "google_vertex",
        "azure",
        "groq",
        "ollama",
        "webui",
        "lmstudio",
        "llamacpp",
        "koboldcpp",
        "vllm",
        "hugging-face",
        "minimax",
        "moonshot",
        "moonshot_coding",
        "mistral",
        "together",
        "bedrock",
        "deepseek",
        "xai",
        "zai",
        "zai_coding",
        "baseten",
        "fireworks",
        "openrouter",
        "chatgpt_oauth",
    }
)
"""Values the client knows for ``model_endpoint_type``."""

SETTINGS_TYPES: Final = frozenset(
    {
        "openai",
        "anthropic",
        "google_ai",
        "google_vertex",
        "azure",
        "groq",
        "deepseek",
        "together",
        "bedrock",
        "xai",
    }
)
"""Values the client knows for ``provider_type``; every other endpoint here speaks OpenAI's wire."""

KEPT_FIELDS: Final = (
    "embedding",
    "embedding_config",
    "hidden",
    "project_id",
    "template_id",
    "base_template_id",
    "max_files_open",
    "per_file_view_window_char_limit",
)
"""Client fields that are stored and given back, and that nothing acts on."""


class MessageIds:
    """Remembers the ids of messages in context; they never change, so it can never be stale."""

    def __init__(self) -> None:
        self._known: OrderedDict[ActorId, tuple[tuple[int, ...], list[str]]] = OrderedDict()

    async def read(self, store: Store, agent: ActorId, window: tuple[int, ...]) -> list[str]:
        """Return the ids of the messages with these sequences."""
        if not window:
            return []
        known = self._known.get(agent)
        if known is not None and known[0] == window:
            self._known.move_to_end(agent)
            return known[1]
        by_sequence = dict(zip(*known, strict=True)) if known is not None else {}
        missing = [sequence for sequence in window if sequence not in by_sequence]
        if missing:
            by_sequence |= await read_ids(store, agent, missing[0], missing[-1])
        ids = [by_sequence[sequence] for sequence in window if sequence in by_sequence]
        if len(ids) == len(window):
            self._known[agent] = (window, ids)
            self._known.move_to_end(agent)
        while len(self._known) > CACHED_AGENTS_MAX:
            self._known.popitem(last=False)
        return ids


def view_agent(
    state: AgentState,
    *,
    message_ids: list[str],
    pending: ApprovalRequestMessage | None,
    tools: Mapping[str, ToolInfo],
) -> AgentOut:
    """Return an agent; tools that this process does not offer any more are left out."""
    config = state.config
    blocks = [view_block(block) for block in state.blocks]
    last = state.last_run
    kept: dict[str, Any] = {
        field: config.extra[field] for field in KEPT_FIELDS if field in config.extra
    }
    return AgentOut(
        id=state.agent_id,
        name=config.name,
        agent_type=config.agent_type,
        system=config.system,
        blocks=blocks,
        memory=MemoryOut(blocks=blocks, agent_type=config.agent_type),
        tools=[view_tool(tools[name]) for name in config.tools if name in tools],
        tags=config.tags,
        llm_config=view_llm_config(config),
        model=config.model,
        model_settings=_view_settings(config),
        description=config.description or None,
        metadata=config.metadata,
        timezone=config.timezone,
        message_ids=message_ids,
        workspace=config.workspace or None,
        created_at=read_time(state.created_ms),
        updated_at=read_time(state.updated_ms),
        last_run_completion=read_time(last.finished_ms) if last is not None else None,
        last_run_duration_ms=last.finished_ms - last.created_ms if last is not None else None,
        last_stop_reason=(last.stop_reason or None) if last is not None else None,
        pending_approval=pending,
        **kept,
    )


def view_block(block: Block) -> BlockOut:
    """Return a block."""
    return BlockOut(
        id=block.id,
        value=block.value,
        label=block.label,
        limit=block.limit,
        description=block.description or None,
        read_only=block.read_only,
        metadata=block.metadata,
        tags=block.tags,
    )


def view_tool(tool: ToolInfo) -> ToolOut:
    """Return a tool; its id follows from its name."""
    parameters = dict(tool.parameters)
    schema = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return ToolOut(
        id=tool_id(tool.name),
        name=tool.name,
        description=tool.description,
        json_schema=schema,
        args_json_schema=parameters,
    )


def tool_id(name: str) -> str:
    """Return the id of the tool of this name."""
    seed = hashlib.blake2b(f"tool/{name}".encode(), digest_size=16).digest()
    return f"tool-{derive_uuid(seed, 0)}"


def view_llm_config(config: AgentConfig) -> LlmConfigOut:
    """Return the model configuration as older clients read it."""
    provider, _, name = config.model.partition("/")
    settings = config.model_settings
    return LlmConfigOut(
        model=name or config.model,
        handle=config.model,
        model_endpoint_type=provider if provider in ENDPOINT_TYPES else "openai",
        provider_name=provider,
        context_window=config.context_window,
        temperature=settings.get("temperature"),
        max_tokens=settings.get("max_tokens"),
        parallel_tool_calls=settings.get("parallel_tool_calls"),
    )


def _view_settings(config: AgentConfig) -> ModelSettingsOut:
    provider = config.model.partition("/")[0]
    settings = config.model_settings
    return ModelSettingsOut(
        provider_type=provider if provider in SETTINGS_TYPES else "openai",
        temperature=settings.get("temperature"),
        max_output_tokens=settings.get("max_tokens"),
        parallel_tool_calls=settings.get("parallel_tool_calls"),
    )


_RUN_STATUS: Final = {
    "queued": "created",
    "running": "running",
    "waiting": "running",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}


def view_run(run: Run, agent_id: str) -> RunOut:
    """Return a run; one that waits for a person is running, with the reason why it stands."""
    finished = run.finished_ms > 0
    reason = "requires_approval" if run.status == "waiting" else run.stop_reason or None
    duration_ms = run.finished_ms - run.created_ms
    return RunOut(
        id=run.run_id,
        agent_id=agent_id,
        status=_RUN_STATUS[run.status],
        stop_reason=reason,
        background=run.background,
        created_at=read_time(run.created_ms),
        completed_at=read_time(run.finished_ms) if finished else None,
        total_duration_ns=duration_ms * 1_000_000 if finished else None,
        metadata={"error": run.error} if run.error else {},
    )
