"""letta-client, as it is published, against a server that runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from letta_client import AsyncLetta, ConflictError, Letta, NotFoundError
from letta_client.types import AgentState, BlockResponse
from letta_client.types.agents import AssistantMessage, LettaResponse, Run

from tests.e2e.support.node import Node, Server
from tests.e2e.support.scripts import AFTER, BEFORE, FILE, conversation
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN = "agent-00000000-0000-4000-8000-000000000000"
BLOCKS: Any = [{"label": "human", "value": "Ada"}]


@pytest.fixture(scope="module")
def server(shared: Node) -> Server:
    shared.script(*conversation())
    return shared.serve()


@contextmanager
def connect(server: Server) -> Iterator[Letta]:
    with Letta(base_url=server.url, api_key="any", max_retries=0) as letta:
        yield letta


def create(letta: Letta, shared: Node, **fields: Any) -> AgentState:
    (shared.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    return letta.agents.create(
        name="e2e",
        memory_blocks=BLOCKS,
        extra_body={"workspace": str(shared.workspace)},
        **fields,
    )


def text_of(message: Any) -> str:
    assert isinstance(message, AssistantMessage)
    assert isinstance(message.content, str)
    return message.content


@pytest.mark.covers(
    "POST /v1/agents",
    "GET /v1/agents",
    "GET /v1/agents/{id}",
    "PATCH /v1/agents/{id}",
    "DELETE /v1/agents/{id}",
)
@pytest.mark.requirement("LETTA-CLIENT")
def test_an_agent_is_created_found_changed_and_deleted(shared: Node, server: Server) -> None:
    with connect(server) as letta:
        made = create(letta, shared, tags=["e2e-one"])
        assert isinstance(made, AgentState)
        assert letta.agents.retrieve(made.id) == made
        assert [agent.id for agent in letta.agents.list(tags=["e2e-one"])] == [made.id]
        changed = letta.agents.update(made.id, name="renamed", description="changed")
        assert (changed.name, changed.description) == ("renamed", "changed")
        assert letta.agents.retrieve(made.id).name == "renamed"
        letta.agents.delete(made.id)
        with pytest.raises(NotFoundError):
            letta.agents.retrieve(made.id)
        assert [agent.id for agent in letta.agents.list(tags=["e2e-one"])] == []


@pytest.mark.covers(
    "GET /v1/agents/{id}/core-memory/blocks",
    "GET /v1/agents/{id}/core-memory/blocks/{label}",
    "PATCH /v1/agents/{id}/core-memory/blocks/{label}",
)
def test_a_block_that_was_changed_reads_back(shared: Node, server: Server) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        changed = letta.agents.blocks.update("human", agent_id=made.id, value="Grace")
        assert isinstance(changed, BlockResponse)
        assert letta.agents.blocks.retrieve("human", agent_id=made.id).value == "Grace"
        assert [block.value for block in letta.agents.blocks.list(made.id)] == ["Grace"]


@pytest.mark.covers("POST /v1/agents/{id}/messages", "GET /v1/agents/{id}/messages")
def test_an_answer_parses_and_stands_in_the_conversation(shared: Node, server: Server) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        answer = letta.agents.messages.create(made.id, input="hello")
        assert isinstance(answer, LettaResponse)
        assert text_of(answer.messages[-1]) == "Hello to you."
        assert answer.stop_reason.stop_reason == "end_turn"
        listed = list(letta.agents.messages.list(made.id, order="asc"))
        assert [message.message_type for message in listed] == ["user_message", "assistant_message"]
        assert listed[-1].id == answer.messages[-1].id


@pytest.mark.covers("POST /v1/agents/{id}/messages/stream")
def test_tokens_stream_before_the_answer_is_whole(shared: Node, server: Server) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        with pytest.warns(DeprecationWarning, match="deprecated"):
            stream = letta.agents.messages.stream(  # type: ignore[deprecated]
                made.id, input="slow", stream_tokens=True
            )
        items = list(stream)
    pieces = [item.content for item in items if isinstance(item, AssistantMessage)]
    assert len(pieces) > 1
    assert "".join(str(piece) for piece in pieces) == "one two three four five six"
    assert [item.message_type for item in items[-2:]] == ["stop_reason", "usage_statistics"]


@pytest.mark.covers("POST /v1/agents/{id}/messages/async", "GET /v1/runs/{id}")
def test_a_background_run_goes_on_by_itself_and_can_be_looked_up(
    shared: Node, server: Server
) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        run = letta.agents.messages.create_async(made.id, input="hello")
        assert isinstance(run, Run)
        eventually(
            lambda: letta.runs.retrieve(run.id).status == "completed",
            within_s=10,
            what="the run to complete",
        )
        assert text_of(next(iter(letta.agents.messages.list(made.id)))) == "Hello to you."


@pytest.mark.covers("POST /v1/agents/{id}/messages/cancel")
def test_a_cancelled_run_ends_and_the_agent_takes_the_next_message(
    shared: Node, server: Server
) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        run = letta.agents.messages.create_async(made.id, input="slow")
        assert letta.agents.messages.cancel(made.id) == {run.id: "cancelled"}
        assert letta.runs.retrieve(run.id).status == "cancelled"
        answer = letta.agents.messages.create(made.id, input="hello")
        assert text_of(answer.messages[-1]) == "Hello to you."


def answer_request(letta: Letta, agent_id: str, call_id: str, *, approve: bool) -> LettaResponse:
    given: Any = {"type": "approval", "approve": approve, "tool_call_id": call_id}
    return letta.agents.messages.create(
        agent_id, messages=[{"type": "approval", "approvals": [given]}]
    )


@pytest.mark.requirement("LETTA-CLIENT")
def test_a_yes_through_the_client_lets_the_write_happen_once(shared: Node, server: Server) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        stopped = letta.agents.messages.create(made.id, input="write")
        assert stopped.stop_reason.stop_reason == "requires_approval"
        request = stopped.messages[-1]
        assert request.message_type == "approval_request_message"
        assert (shared.workspace / FILE).read_text() == BEFORE
        call_id = str(request.tool_call.tool_call_id)
        answer = answer_request(letta, made.id, call_id, approve=True)
        assert text_of(answer.messages[-1]) == "That is done."
        assert (shared.workspace / FILE).read_text() == AFTER
        with pytest.raises(ConflictError):
            answer_request(letta, made.id, call_id, approve=True)
        assert letta.agents.retrieve(made.id).pending_approval is None


def test_a_no_through_the_client_reaches_the_model_and_changes_nothing(
    shared: Node, server: Server
) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
        request = letta.agents.messages.create(made.id, input="write").messages[-1]
        assert request.message_type == "approval_request_message"
        answer = answer_request(letta, made.id, str(request.tool_call.tool_call_id), approve=False)
        assert text_of(answer.messages[-1]) == "That is done."
        (returned,) = [m for m in answer.messages if m.message_type == "tool_return_message"]
        assert returned.status == "error"
    assert (shared.workspace / FILE).read_text() == BEFORE


async def test_the_async_client_does_the_same(shared: Node, server: Server) -> None:
    (shared.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    async with AsyncLetta(base_url=server.url, api_key="any", max_retries=0) as letta:
        made = await letta.agents.create(
            name="async", memory_blocks=BLOCKS, extra_body={"workspace": str(shared.workspace)}
        )
        answer = await letta.agents.messages.create(made.id, input="read it")
        assert [message.message_type for message in answer.messages] == [
            "tool_call_message",
            "tool_return_message",
            "assistant_message",
        ]
        stream = await letta.agents.messages.create(made.id, input="hello", streaming=True)
        items = [item async for item in stream]
        assert text_of(items[0]) == "Hello to you."
        block = await letta.agents.blocks.update("human", agent_id=made.id, value="Grace")
        assert block.value == "Grace"
        assert (await letta.agents.update(made.id, name="m")).name == "m"
        listed = [message async for message in letta.agents.messages.list(made.id)]
        assert len(listed) == 6
        await letta.agents.delete(made.id)
        with pytest.raises(NotFoundError):
            await letta.agents.retrieve(made.id)


def test_a_client_that_leaves_in_the_middle_loses_nothing(shared: Node, server: Server) -> None:
    with connect(server) as letta:
        made = create(letta, shared)
    path = f"/v1/agents/{made.id}/messages/stream"
    with (
        server.client() as client,
        client.stream("POST", path, json={"input": "slow", "stream_tokens": True}) as response,
    ):
        first = next(response.iter_lines())
        assert first.startswith("data:")
    with connect(server) as letta:
        eventually(
            lambda: letta.agents.retrieve(made.id).last_stop_reason == "end_turn",
            within_s=10,
            what="the run to end without its caller",
        )
        newest = next(iter(letta.agents.messages.list(made.id)))
        assert text_of(newest) == "one two three four five six"


def test_the_client_names_an_agent_that_does_not_exist(server: Server) -> None:
    with connect(server) as letta, pytest.raises(NotFoundError) as caught:
        letta.agents.messages.create(UNKNOWN, input="hello")
    assert isinstance(caught.value.response, httpx.Response)
    assert caught.value.response.json()["error"]["fields"] == {"kind": "agent", "name": UNKNOWN}
