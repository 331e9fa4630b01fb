"""The installed letta-client reads everything the server says, strictly and in full."""

from __future__ import annotations

import asyncio
import json
from typing import Any, get_args

import httpx
import pytest
from letta_client import AsyncLetta, AsyncStream, ConflictError, UnprocessableEntityError
from letta_client.types import AgentState, BlockResponse, HealthResponse
from letta_client.types.agents import (
    AssistantMessage,
    LettaResponse,
    LettaStreamingResponse,
    Message,
    Run,
)
from pydantic import BaseModel, TypeAdapter

from kelpie.agents import model as a
from kelpie.core.ids import ActorId
from kelpie.llm.model import Delta, ToolCall
from tests.unit.server.world import World

CALL = ToolCall(id="call_1", name="write_file", arguments='{"path": "notes.txt"}')
BLOCKS: Any = [{"label": "persona", "value": "You are helpful", "tags": ["x"]}]


def connect(world: World) -> AsyncLetta:
    return AsyncLetta(base_url="http://127.0.0.1:8283", http_client=world.client(), max_retries=0)


def assert_complete(kind: type[BaseModel], data: dict[str, Any]) -> None:
    """Check that every field the client declares is present, on the wire's own name."""
    declared = {field.alias or name for name, field in kind.model_fields.items()}
    assert declared <= set(data), f"{kind.__name__} lacks {declared - set(data)}"


def read_strictly(kind: Any, response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return TypeAdapter(kind).validate_json(response.content, strict=True)


async def read_stream(stream: AsyncStream[Any]) -> list[Any]:
    """Return all that the client yields, and let the loop close what it leaves open at the end."""
    items = [item async for item in stream]
    for _ in range(3):
        await asyncio.sleep(0)
    return items


async def create(world: World, http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/agents", json={"name": "n", "memory_blocks": BLOCKS, **fields})
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()
    return data


async def test_an_agent_parses_strictly_with_every_declared_field() -> None:
    world = World()
    async with world.client() as http:
        made = await create(
            world,
            http,
            workspace="/srv/w",
            model="anthropic/claude",
            model_settings={"provider_type": "anthropic", "temperature": 0.5},
            embedding_config={
                "embedding_dim": 3,
                "embedding_endpoint_type": "openai",
                "embedding_model": "e",
            },
        )
        response = await http.get(f"/v1/agents/{made['id']}")
    agent = read_strictly(AgentState, response)
    data = response.json()
    assert_complete(AgentState, data)
    assert_complete(BlockResponse, data["blocks"][0])
    for name, field in AgentState.model_fields.items():
        nested = [kind for kind in get_args(field.annotation) if isinstance(kind, type)]
        if name in {"tools", "llm_config", "memory"}:
            kind = nested[0] if nested else field.annotation
            value = data[name][0] if isinstance(data[name], list) else data[name]
            assert_complete(kind, value)  # type: ignore[arg-type]
    assert [tool.name for tool in agent.tools] == ["core_memory_append", "read_file"]
    assert agent.llm_config.handle == "anthropic/claude"
    assert agent.api_model_settings is not None


async def test_the_first_call_of_every_tutorial_works_literally() -> None:
    world = World()
    body = {"name": "test", "memory_blocks": [{"label": "persona", "value": "You are helpful"}]}
    async with world.client() as http:
        made = await http.post("/v1/agents", content=json.dumps(body))
        sent = await http.post(
            f"/v1/agents/{made.json()['id']}/messages",
            content=b'{"role":"user","content":"What is 2+2?"}',
        )
    answer = read_strictly(LettaResponse, sent)
    assert [message.message_type for message in answer.messages] == [
        "reasoning_message",
        "assistant_message",
    ]
    assert answer.stop_reason.stop_reason == "end_turn"
    assert answer.usage.total_tokens == 5


@pytest.mark.requirement("LETTA-CLIENT")
async def test_the_client_creates_sends_lists_updates_and_deletes() -> None:
    world = World()
    letta = connect(world)
    made = await letta.agents.create(name="n", memory_blocks=BLOCKS, tags=["a", "b"])
    answer = await letta.agents.messages.create(made.id, input="hi")
    assert isinstance(answer.messages[-1], AssistantMessage)
    listed = [message async for message in letta.agents.messages.list(made.id, limit=1)]
    assert [message.message_type for message in listed] == [
        "reasoning_message",
        "assistant_message",
        "user_message",
    ]
    block = await letta.agents.blocks.update("persona", agent_id=made.id, value="new")
    assert block.value == "new"
    assert (await letta.agents.blocks.retrieve("persona", agent_id=made.id)).value == "new"
    assert [b.label async for b in letta.agents.blocks.list(made.id)] == ["persona"]
    changed = await letta.agents.update(made.id, name="m", description="d")
    assert (changed.name, changed.description) == ("m", "d")
    assert [agent.id async for agent in letta.agents.list(tags=["a"])] == [made.id]
    assert [agent.id async for agent in letta.agents.list(tags=["c"])] == []
    await letta.agents.delete(made.id)
    assert [agent.id async for agent in letta.agents.list()] == []


async def test_listing_pages_agents_in_both_directions() -> None:
    world = World()
    letta = connect(world)
    made = [(await letta.agents.create(name=f"n{i}")).id for i in range(5)]
    newest_first = [agent.id async for agent in letta.agents.list(limit=2)]
    assert newest_first == made[::-1]
    oldest_first = [agent.id async for agent in letta.agents.list(limit=2, order="asc")]
    assert oldest_first == made
    page = await letta.agents.list(limit=2, before=made[0])
    assert [agent.id for agent in page.items] == [made[2], made[1]]
    assert [agent.id async for agent in letta.agents.list(name="n3")] == [made[3]]


async def test_listing_pages_messages_in_both_directions() -> None:
    world = World()
    letta = connect(world)
    made = await letta.agents.create(name="n")
    for text in ("one", "two", "three"):
        await letta.agents.messages.create(made.id, input=text)
    users: Any = ["user_message"]
    oldest = letta.agents.messages.list(
        made.id, order="asc", limit=2, include_return_message_types=users
    )
    texts = [message.content async for message in oldest]  # type: ignore[union-attr]
    assert texts == ["one", "two", "three"]
    everything = [message.id async for message in letta.agents.messages.list(made.id, limit=100)]
    page = await letta.agents.messages.list(made.id, before=everything[-1], limit=1)
    assert {message.id for message in page.items} == {everything[-2]}


def stream_tokens(world: World, agent: ActorId, run: a.Run) -> None:
    world.emit(agent, "step.started", {"run_id": run.run_id, "step_id": "step-1", "ref": "m1"})
    world.start_model(agent, 1, Delta(text="lost"))
    world.start_model(
        agent,
        2,
        Delta(reasoning="hm"),
        Delta(text="Good "),
        Delta(text="day"),
        Delta(call_index=0, call_id="call_1", call_name="write_file"),
        Delta(call_index=0, call_arguments="{}"),
    )
    world.say(agent, run, role="assistant", content="Good day", reasoning="hm", tool_calls=(CALL,))
    world.say(agent, run, role="tool", content="done", tool_call_id="call_1", status="success")
    world.say(agent, run, role="assistant", content="Bye")
    world.finish(agent, run)


async def test_streamed_tokens_share_id_and_otid_and_are_not_repeated() -> None:
    world = World(script=stream_tokens)
    letta = connect(world)
    made = await letta.agents.create(name="n")
    shown = await read_stream(
        await letta.agents.messages.create(made.id, input="hi", streaming=True, stream_tokens=True)
    )
    assert [item.message_type for item in shown] == [
        "reasoning_message",
        "assistant_message",
        "assistant_message",
        "tool_call_message",
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
        "stop_reason",
        "usage_statistics",
    ]
    first, second = shown[1:3]
    assert isinstance(first, AssistantMessage)
    assert isinstance(second, AssistantMessage)
    assert (first.id, first.otid) == (second.id, second.otid)
    assert first.content + second.content == "Good day"  # type: ignore[operator]
    assert shown[3].tool_call.tool_call_id == shown[4].tool_call.tool_call_id


async def test_every_streamed_event_parses_strictly() -> None:
    world = World(script=stream_tokens)
    async with world.client() as http:
        made = await create(world, http)
        response = await http.post(
            f"/v1/agents/{made['id']}/messages/stream",
            json={"messages": [{"role": "user", "content": "hi"}], "stream_tokens": True},
        )
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    adapter: TypeAdapter[Any] = TypeAdapter(LettaStreamingResponse)
    for line in lines[:-1]:
        adapter.validate_json(line.removeprefix("data: "), strict=True)


def ask_twice(world: World, agent: ActorId, run: a.Run) -> None:
    world.say(agent, run, role="assistant", content="", tool_calls=(CALL,))
    world.wait_for_person(agent, run, CALL)


def after_approval(world: World, agent: ActorId, run: a.Run) -> None:
    world.say(agent, run, role="tool", content="ok", tool_call_id="call_1", status="success")
    world.say(agent, run, role="assistant", content="Done")
    world.finish(agent, run)


async def test_an_approval_goes_as_the_client_expects_it() -> None:
    world = World(script=ask_twice, resume=after_approval)
    letta = connect(world)
    made = await letta.agents.create(name="n")
    stopped = await letta.agents.messages.create(made.id, input="write it")
    assert stopped.stop_reason.stop_reason == "requires_approval"
    request = stopped.messages[-1]
    assert request.message_type == "approval_request_message"
    assert [call.tool_call_id for call in request.tool_calls] == ["call_1"]  # type: ignore[union-attr]
    pending = (await letta.agents.retrieve(made.id)).pending_approval
    assert pending is not None
    assert pending.id == request.id
    with pytest.raises(ConflictError) as refused:
        await letta.agents.messages.create(made.id, input="hello?")
    assert refused.value.body["detail"]["code"] == "PENDING_APPROVAL"  # type: ignore[index]
    assert refused.value.body["detail"]["pending_request_id"] == request.id  # type: ignore[index]
    yes: Any = {
        "type": "approval",
        "approvals": [{"type": "approval", "approve": True, "tool_call_id": "call_1"}],
    }
    answer = await letta.agents.messages.create(made.id, messages=[yes])
    assert [message.message_type for message in answer.messages] == [
        "tool_return_message",
        "assistant_message",
    ]
    with pytest.raises(ConflictError):
        await letta.agents.messages.create(made.id, messages=[yes])


async def test_an_older_client_approves_by_request_id() -> None:
    world = World(script=ask_twice, resume=after_approval)
    letta = connect(world)
    made = await letta.agents.create(name="n")
    stopped = await letta.agents.messages.create(made.id, input="write it")
    no: Any = {
        "type": "approval",
        "approve": False,
        "approval_request_id": stopped.messages[-1].id,
        "reason": "not now",
    }
    stream = await letta.agents.messages.create(made.id, messages=[no], streaming=True)
    kinds = [item.message_type for item in await read_stream(stream)]
    assert kinds[-2:] == ["stop_reason", "usage_statistics"]
    told = [message for message, _, _ in world.told]
    assert told[-1].reason == "not now"  # type: ignore[attr-defined]


async def test_a_background_run_is_found_by_its_id() -> None:
    world = World()
    async with world.client() as http:
        made = await create(world, http)
        started = await http.post(f"/v1/agents/{made['id']}/messages/async", json={"input": "x"})
        run = read_strictly(Run, started)
        found = await http.get(f"/v1/runs/{run.id}")
    assert_complete(Run, found.json())
    assert read_strictly(Run, found).status == "completed"


async def test_messages_and_health_parse_strictly() -> None:
    world = World(script=stream_tokens)
    async with world.client() as http:
        made = await create(world, http)
        image = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
        parts = [{"type": "text", "text": "see"}, {"type": "image", "source": image}]
        await http.post(f"/v1/agents/{made['id']}/messages", json={"input": parts})
        listed = await http.get(f"/v1/agents/{made['id']}/messages")
        health = await http.get("/v1/health/")
    messages = read_strictly(list[Message], listed)
    by_type = {message.message_type: message for message in messages}
    for raw in listed.json():
        assert_complete(type(by_type[raw["message_type"]]), raw)
    assert read_strictly(HealthResponse, health).version == "1.2.3"


async def test_the_client_sees_refusals_as_its_own_errors() -> None:
    letta = connect(World())
    with pytest.raises(UnprocessableEntityError):
        await letta.agents.retrieve("agent-1")
    with pytest.raises(UnprocessableEntityError):
        await letta.agents.create(name="n", secrets={"a": "b"})
