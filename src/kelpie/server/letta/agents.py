"""Agents: create, list, retrieve, update, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET

from kelpie.agents.model import (
    ACTOR_TYPE,
    COLLECTION,
    AgentConfig,
    AgentState,
    CreateAgent,
    DeleteAgent,
    UpdateAgent,
)
from kelpie.core.errors import ActorMovedError, InvalidFieldError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import BLOCK_CHARS_DEFAULT, TOOLS_PER_AGENT_MAX
from kelpie.core.quoting import quote_text
from kelpie.memory.blocks import Block
from kelpie.server.decoding import require_storable
from kelpie.server.http import Response, json_response
from kelpie.server.letta.agent_view import KEPT_FIELDS, MessageIds, tool_id, view_agent
from kelpie.server.letta.pending import read_request
from kelpie.server.letta.requests import (
    AgentCreate,
    AgentListQuery,
    AgentQuery,
    AgentUpdate,
    BlockCreate,
    LlmConfigIn,
    ModelSettingsIn,
)
from kelpie.server.letta.responses import AgentOut
from kelpie.server.letta.subjects import agent_actor, read_agent, require_cursor
from kelpie.server.letta.unsupported import AGENT_FIELDS, BLOCK_FIELDS, refuse_unsupported
from kelpie.server.operations import Call, Ids, Nothing
from kelpie.server.ports import Deps, ToolInfo
from kelpie.storage.records import ListItem, Page

SCAN_ROWS: Final = 200  # rows of one read while filtering
CONTEXT_WINDOW_DEFAULT: Final = AgentConfig(name="").context_window
_MODEL_MISSING: Final = (
    "none is given, and the server has no default; name one as <provider>/<name>, "
    "or set a provider's key (OPENAI_API_KEY for instance) and start the server again"
)


class _Config(msgspec.Struct, frozen=True):
    name: str
    tags: tuple[str, ...] = ()


class _Row(msgspec.Struct, frozen=True):
    """The part of a projection row that filters need, so that no agent is woken to be skipped."""

    config: _Config


_decode_row: Final = msgspec.msgpack.Decoder(_Row).decode


class AgentRoutes:
    """The handlers; they share what is remembered of immutable message ids."""

    def __init__(self) -> None:
        self._message_ids = MessageIds()

    async def create(self, call: Call[Nothing, AgentCreate]) -> Response:
        """Create an agent with its blocks."""
        ids = call.ids("agents.create")
        agent = ActorId(call.tenant, ACTOR_TYPE, ids.next("agent"))
        config = _new_config(call.body, agent.key, call.deps, local=call.local)
        wanted = call.body.memory_blocks or []
        blocks = tuple(_new_block(f"memory_blocks[{i}]", b, ids) for i, b in enumerate(wanted))
        state = await call.tell(agent, CreateAgent(config=config, blocks=blocks))
        return json_response(await self.view(call, agent, state))

    async def retrieve(self, call: Call[AgentQuery, Nothing]) -> Response:
        """Return one agent."""
        agent = agent_actor(call)
        state = await read_agent(call, agent)
        return json_response(await self.view(call, agent, state))

    async def update(self, call: Call[Nothing, AgentUpdate]) -> Response:
        """Change fields of an agent; absent ones stay."""
        agent = agent_actor(call)
        state = await read_agent(call, agent)
        changes = _changes(call.body, state.config, call.deps)
        if changes:
            state = await call.tell(agent, UpdateAgent(changes=changes))
        return json_response(await self.view(call, agent, state))

    async def delete(self, call: Call[Nothing, Nothing]) -> Response:
        """Delete an agent with everything it owns; an active run is cancelled first."""
        agent = agent_actor(call)
        await call.tell(agent, DeleteAgent())
        return json_response({"message": f"agent {agent.key} was deleted"})

    async def list_page(self, call: Call[AgentListQuery, Nothing]) -> Response:
        """Return a page of agents, newest first unless asked otherwise."""
        query = call.query
        descending = not query.ascending if query.ascending is not None else query.order != "asc"
        after = require_cursor("query.after", query.after, "agent")
        before = require_cursor("query.before", query.before, "agent")
        backwards = after is None and before is not None
        cursor = before if backwards else after
        shown: list[AgentOut] = []
        while len(shown) < query.limit:
            rows = await call.deps.store.list_page(
                COLLECTION,
                Page(
                    tenant=call.tenant,
                    limit=SCAN_ROWS if _filters(query) else query.limit - len(shown),
                    after=cursor,
                    before=None if backwards else before,
                    descending=descending is not backwards,
                ),
            )
            if not rows:
                break
            cursor = rows[-1].item_id
            await self._take(call, rows, shown)
        return json_response(shown[::-1] if backwards else shown)

    async def view(self, call: Call[Any, Any], agent: ActorId, state: AgentState) -> AgentOut:
        """Return an agent on the wire."""
        deps = call.deps
        message_ids = await self._message_ids.read(deps.store, agent, state.window)
        pending = await read_request(deps.runtime, agent, state.run)
        return view_agent(state, message_ids=message_ids, pending=pending, tools=deps.tools)

    async def _take(
        self, call: Call[AgentListQuery, Nothing], rows: list[ListItem], shown: list[AgentOut]
    ) -> None:
        """Add the agents of these rows that the filters let through, up to the limit."""
        for row in rows:
            if len(shown) >= call.query.limit:
                return
            listed = _decode_row(row.body).config
            if not _matches(call.query, listed.name, listed.tags):
                continue
            try:
                state = await read_agent(call, row.owner)
            except (NotFoundError, ActorMovedError):
                continue  # deleted since the row was read, or exported
            if _matches(call.query, state.config.name, state.config.tags):
                shown.append(await self.view(call, row.owner, state))


def _filters(query: AgentListQuery) -> bool:
    return bool(query.name is not None or query.query_text or query.tags)


def _matches(query: AgentListQuery, name: str, tags: tuple[str, ...]) -> bool:
    """Return whether an agent passes the filters."""
    if query.name is not None and name != query.name:
        return False
    if query.query_text and query.query_text.lower() not in name.lower():
        return False
    if not query.tags:
        return True
    found = [tag in tags for tag in query.tags]
    return all(found) if query.match_all_tags else any(found)


def _new_config(body: AgentCreate, agent_id: str, deps: Deps, *, local: bool) -> AgentConfig:
    refuse_unsupported(body, AGENT_FIELDS)
    metadata = body.metadata or {}
    require_storable("body.metadata", metadata)
    extra = _kept(body)
    workspace = deps.workspace_for(body.workspace, local=local) if body.workspace else ""
    handle = body.model or _handle(body.llm_config) or deps.model_default
    if not handle:
        raise InvalidFieldError("body.model", _MODEL_MISSING)
    _require_provider(handle, deps)
    return AgentConfig(
        name=body.name or f"agent {agent_id[6:14]}",
        agent_type=body.agent_type,
        system=body.system or "",
        model=handle,
        model_settings=_settings(body, {}),
        context_window=_window(body) or CONTEXT_WINDOW_DEFAULT,
        description=body.description or "",
        metadata=metadata,
        tags=_distinct(body.tags) or (),
        timezone=body.timezone or "UTC",
        tools=_new_tools(body, deps.tools, has_workspace=bool(workspace)),
        workspace=workspace,
        extra=extra,
    )


def _new_tools(
    body: AgentCreate, offered: Mapping[str, ToolInfo], *, has_workspace: bool
) -> tuple[str, ...]:
    names: list[str] = []
    if body.include_base_tools:
        names += [
            tool.name
            for tool in offered.values()
            if tool.base and (has_workspace or not tool.needs_workspace)
        ]
    for name in body.tools or ():
        if name not in offered:
            raise _unknown_tool("body.tools", name, offered)
        names.append(name)
    names += _tools_by_id(body.tool_ids or (), offered)
    return _bounded(names)


def _tools_by_id(ids: Any, offered: Mapping[str, ToolInfo]) -> list[str]:
    by_id = {tool_id(name): name for name in offered}
    for each in ids:
        if each not in by_id:
            raise _unknown_tool("body.tool_ids", each, offered)
    return [by_id[each] for each in ids]


def _bounded(names: list[str]) -> tuple[str, ...]:
    distinct = tuple(dict.fromkeys(names))
    if len(distinct) > TOOLS_PER_AGENT_MAX:
        problem = f"{len(distinct)} tools are more than {TOOLS_PER_AGENT_MAX}"
        raise InvalidFieldError("body.tools", problem)
    return distinct


def _unknown_tool(field: str, name: str, offered: Mapping[str, ToolInfo]) -> InvalidFieldError:
    known = ", ".join(offered) or "none"
    return InvalidFieldError(field, f"{quote_text(name)} does not exist; there are {known}")


def _new_block(field: str, block: BlockCreate, ids: Ids) -> Block:
    refuse_unsupported(block, BLOCK_FIELDS)
    require_storable(f"body.{field}.metadata", block.metadata)
    return Block(
        id=ids.next("block"),
        label=block.label,
        value=block.value,
        limit=block.limit or BLOCK_CHARS_DEFAULT,
        description=block.description or "",
        read_only=block.read_only,
        metadata=block.metadata or {},
        tags=tuple(block.tags or ()),
    )


def _changes(body: AgentUpdate, config: AgentConfig, deps: Deps) -> dict[str, Any]:
    """Return the configuration fields that a request changes."""
    refuse_unsupported(body, AGENT_FIELDS)
    given = {
        "name": body.name,
        "system": body.system,
        "timezone": body.timezone,
        "model": body.model or _handle(body.llm_config),
        "context_window": _window(body),
        "tags": _distinct(body.tags),
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "model" in changes:
        _require_provider(changes["model"], deps)
    if body.description is not UNSET:
        changes["description"] = body.description or ""
    if body.metadata is not UNSET:
        require_storable("body.metadata", body.metadata)
        changes["metadata"] = body.metadata or {}
    if body.tool_ids is not None:
        changes["tools"] = _bounded(_tools_by_id(body.tool_ids, deps.tools))
    settings = _settings(body, config.model_settings)
    if settings != config.model_settings:
        changes["model_settings"] = settings
    if kept := _kept(body):
        changes["extra"] = {**config.extra, **kept}
    return changes


def _require_provider(handle: str, deps: Deps) -> None:
    """Return if the provider of a model is configured: its agent could not say a word without."""
    name = handle.partition("/")[0]
    if name in deps.model_providers:
        return
    known = ", ".join(sorted(deps.model_providers)) or "none"
    problem = (
        f"{quote_text(handle)} needs the provider {quote_text(name)}, and the configured ones are: "
        f"{known}; set its key's variable, or add it to the settings, and start the server again"
    )
    raise InvalidFieldError("body.model", problem)


def _window(body: AgentCreate | AgentUpdate) -> int | None:
    if body.context_window_limit is None and body.llm_config is not None:
        return body.llm_config.context_window
    return body.context_window_limit


def _distinct(tags: list[str] | None) -> tuple[str, ...] | None:
    return None if tags is None else tuple(dict.fromkeys(tags))


def _settings(body: AgentCreate | AgentUpdate, present: dict[str, Any]) -> dict[str, Any]:
    """Return sampling settings under the names that model calls use; the newest field wins."""
    old = body.llm_config
    new = body.model_settings or ModelSettingsIn()
    given = {
        "temperature": _first(new.temperature, old.temperature if old else None),
        "max_tokens": _first(
            new.max_output_tokens, body.max_tokens, old.max_tokens if old else None
        ),
        "parallel_tool_calls": _first(new.parallel_tool_calls, body.parallel_tool_calls),
    }
    return present | {name: value for name, value in given.items() if value is not None}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _handle(config: LlmConfigIn | None) -> str | None:
    if config is None:
        return None
    return config.handle or f"{config.model_endpoint_type}/{config.model}"


def _kept(body: AgentCreate | AgentUpdate) -> dict[str, Any]:
    kept = {field: value for field in KEPT_FIELDS if (value := getattr(body, field)) is not None}
    require_storable("body", kept)
    return kept
