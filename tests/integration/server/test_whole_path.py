"""The official client, the edge, and everything behind it: real store, jail and model wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from letta_client import APIStatusError, AsyncLetta, ConflictError

from kelpie.app.opened import open_app
from kelpie.settings import load_settings
from tests.integration.llm.loopback import scripted_model

REWRITE = {"name": "write_file", "arguments": {"path": "a.txt", "content": "two\n"}}
SCRIPT = {
    "chunk_chars": 3,
    "steps": [
        {"when": {"tool": "write_file"}, "text": "Done."},
        {"when": {"user_contains": "hello"}, "text": "Hello, Ada.", "reasoning": "Greet."},
        {"when": {"user_contains": "rewrite"}, "text": "I will.", "tool_calls": [REWRITE]},
        {
            "when": {"user_contains": "break"},
            "fail": {"status": 400, "body": {"error": {"message": "no"}}},
        },
    ],
}


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Open the product over a scripted model and yield a client of its ASGI callable."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with scripted_model(script) as url:
        config = tmp_path / "kelpie.toml"
        config.write_text(
            f"model = 'vllm/scripted'\ndata_dir = '{tmp_path / 'data'}'\n"
            f"workspaces.roots = ['{tmp_path}']\n"
            f"[log]\nlevel = 'error'\n[providers.vllm]\nwire = 'openai'\nbase_url = '{url}'\n"
        )
        settings = load_settings(environment={}, cwd=tmp_path, home=tmp_path)
        async with open_app(settings, drive=True) as app:
            transport = httpx.ASGITransport(app=cast("Any", app.asgi))
            base_url = "http://127.0.0.1:8283"
            async with httpx.AsyncClient(transport=transport, base_url=base_url) as http:
                yield http


def connect(http: httpx.AsyncClient) -> AsyncLetta:
    return AsyncLetta(base_url="http://127.0.0.1:8283", http_client=http, max_retries=0)


async def read_stream(stream: Any) -> list[Any]:
    """Return all that the client yields, and let the loop close what it leaves open at the end."""
    items = [item async for item in stream]
    for _ in range(3):
        await asyncio.sleep(0)
    return items


async def test_a_conversation_streams_is_listed_and_found_by_its_run(tmp_path: Path) -> None:
    async with opened(tmp_path) as http:
        letta = connect(http)
        agent = await letta.agents.create(name="ada", tags=["x"])
        stream = await letta.agents.messages.create(
            agent.id, input="hello", streaming=True, stream_tokens=True
        )
        shown = await read_stream(stream)
        said = [item for item in shown if item.message_type == "assistant_message"]
        assert "".join(item.content for item in said) == "Hello, Ada."
        assert len(said) > 1
        assert len({(item.id, item.otid) for item in said}) == 1
        assert [item.message_type for item in shown[-2:]] == ["stop_reason", "usage_statistics"]
        listed = [m async for m in letta.agents.messages.list(agent.id, order="asc", limit=1)]
        kinds = [message.message_type for message in listed]
        assert kinds == ["user_message", "reasoning_message", "assistant_message"]
        assert (listed[-1].id, listed[-1].otid) == (said[0].id, said[0].otid)
        run = await letta.runs.retrieve(shown[-1].run_ids[0])
        assert (run.agent_id, run.status) == (agent.id, "completed")
        found = [each.id async for each in letta.agents.list(tags=["x"], name="ada")]
        assert found == [agent.id]
        again = await letta.agents.retrieve(agent.id)
        assert again.message_ids == list(dict.fromkeys(message.id for message in listed))
        await letta.agents.delete(agent.id)
        with pytest.raises(APIStatusError) as gone:
            await letta.agents.retrieve(agent.id)
        assert gone.value.status_code == 404


@pytest.mark.requirement("EFFECT-APPROVAL-ONCE")
async def test_a_rewrite_waits_is_approved_once_and_happens(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "a.txt").write_text("one\n")
    async with opened(tmp_path) as http:
        letta = connect(http)
        body = {"workspace": str(workspace)}
        agent = await letta.agents.create(name="ada", extra_body=body)
        stopped = await letta.agents.messages.create(agent.id, input="please rewrite it")
        assert stopped.stop_reason.stop_reason == "requires_approval"
        request = cast("Any", stopped.messages[-1])
        with pytest.raises(ConflictError):
            await letta.agents.messages.create(agent.id, input="hello")
        [question] = (await http.get("/v1/approvals")).json()["effects"]
        assert "+two" in question["card"]["files"][0]["diff"]
        assert (workspace / "a.txt").read_text() == "one\n"
        call_id = request.tool_calls[0].tool_call_id
        yes: Any = {
            "type": "approval",
            "approvals": [{"type": "approval", "approve": True, "tool_call_id": call_id}],
        }
        answer = await letta.agents.messages.create(agent.id, messages=[yes])
        kinds = [message.message_type for message in answer.messages]
        assert kinds == ["tool_return_message", "assistant_message"]
        assert (workspace / "a.txt").read_text() == "two\n"
        with pytest.raises(ConflictError):
            await letta.agents.messages.create(agent.id, messages=[yes])
        effect_id = question["effect_id"]
        second = await http.post(f"/v1/approvals/{effect_id}/deny", json={})
        assert (second.status_code, second.json()["error"]["code"]) == (409, "already_decided")
        soundness = (await http.get("/v1/audit/verify")).json()
        assert soundness["ok"]


async def test_a_failing_model_is_a_typed_answer_and_the_agent_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as http:
        letta = connect(http)
        agent = await letta.agents.create(name="ada")
        with pytest.raises(APIStatusError) as failed:
            await letta.agents.messages.create(agent.id, input="break")
        assert failed.value.status_code == 502
        assert failed.value.response.json()["error"]["code"] == "run_failed"
        key = {"Idempotency-Key": "k-1"}
        first = await letta.agents.messages.create(agent.id, input="hello", extra_headers=key)
        again = await letta.agents.messages.create(agent.id, input="hello", extra_headers=key)
        assert again.usage.run_ids == first.usage.run_ids
        assert [m.id for m in again.messages] == [m.id for m in first.messages]
