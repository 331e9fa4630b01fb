"""The provider and the scripted model understand each other over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from kelpie.core.errors import ModelError
from kelpie.llm.model import ChatMessage, Delta, ToolCall
from tests.integration.llm.loopback import SCRIPTED_MODEL, ask, provider_at, scripted_model
from tests.unit.llm.worlds import joined_text


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def write_script(directory: Path, *steps: dict[str, Any], **fields: Any) -> Path:
    path = directory / "any-name.json"
    path.write_text(json.dumps({"steps": steps, **fields}))
    return path


async def test_text_streams_in_pieces_and_ends_whole(tmp_path: Path) -> None:
    step = {"text": "Grüß dich 🐎, mein Freund", "reasoning": "Hm."}
    with scripted_model(write_script(tmp_path, step, chunk_chars=3, chunk_delay_ms=1)) as url:
        async with provider_at(url) as (provider, _):
            deltas, answer = await ask(provider, user("Hi"))
            assert await provider.list_models() == ["scripted"]
    assert len(deltas) > 5
    assert joined_text(deltas) == answer.text == step["text"]
    assert answer.reasoning == "Hm."
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert answer.model == "scripted"


async def test_parallel_tool_calls_arrive_with_ids_of_their_own(tmp_path: Path) -> None:
    calls = [
        {"name": "read_file", "arguments": {"path": "a.txt"}},
        {"name": "read_file", "arguments": '{"path": oops'},
    ]
    with scripted_model(write_script(tmp_path, {"text": "So:", "tool_calls": calls})) as url:
        async with provider_at(url) as (provider, _):
            _, answer = await ask(provider, user("Hi"))
    assert answer.finish == "tool_calls"
    assert [call.arguments for call in answer.tool_calls] == ['{"path": "a.txt"}', '{"path": oops']
    assert len({call.id for call in answer.tool_calls}) == 2


async def test_steps_follow_the_conversation_not_the_order_of_calls(tmp_path: Path) -> None:
    script = write_script(
        tmp_path,
        {"text": "once"},
        {"when": {"role": "tool", "tool": "read_file", "contains": "42"}, "text": "saw 42"},
        {"when": {"role": "tool", "user_contains": "please"}, "text": "so polite"},
        {"when": {"pattern": "^b[aeiou]d$"}, "text": "matched"},
    )
    call = ToolCall(id="c1", name="read_file", arguments="{}")
    called = ChatMessage(role="assistant", tool_calls=(call,))

    def returned(text: str) -> ChatMessage:
        return ChatMessage(role="tool", content=text, tool_call_id="c1")

    with scripted_model(script) as url:
        async with provider_at(url) as (provider, _):
            said = [
                (await ask(provider, *messages))[1].text
                for messages in (
                    (user("x"),),
                    (user("bad"),),
                    (user("y"), called, returned("it is 42")),
                    (user("please"), called, returned("nothing")),
                    (user("bad"),),
                )
            ]
            assert said == ["once", "matched", "saw 42", "so polite", "matched"]
            with pytest.raises(ModelError, match="no step for this conversation"):
                await ask(provider, user("something else"))


async def test_a_rate_limit_is_waited_out_as_asked(tmp_path: Path) -> None:
    limit = {"fail": {"status": 429, "headers": {"retry-after": "3"}}, "times": 2}
    with scripted_model(write_script(tmp_path, limit, {"text": "at last"})) as url:
        async with provider_at(url) as (provider, clock):
            _, answer = await ask(provider, user("Hi"))
        async with httpx.AsyncClient(trust_env=False) as client:
            stats = (await client.get(url.removesuffix("/v1") + "/stats")).json()
    assert answer.text == "at last"
    assert clock.sleeps == [3.125, 3.125]
    assert stats == {"calls": 3, "steps": [2, 1]}


async def test_a_connection_cut_in_the_answer_is_a_typed_error(tmp_path: Path) -> None:
    script = write_script(tmp_path, {"text": "a long answer indeed", "cut_after": 2})
    with scripted_model(script) as url:
        async with provider_at(url) as (provider, _):
            with pytest.raises(ModelError) as caught:
                await ask(provider, user("Hi"))
    assert caught.value.reason == "unreachable"


async def test_an_error_in_the_answer_is_a_typed_error(tmp_path: Path) -> None:
    script = write_script(tmp_path, {"text": "a long answer indeed", "error_after": 2})
    with scripted_model(script) as url:
        async with provider_at(url) as (provider, _):
            with pytest.raises(ModelError, match="scripted failure") as caught:
                await ask(provider, user("Hi"))
    assert caught.value.reason == "server"


async def test_a_server_that_is_not_there_is_unreachable_after_bounded_retries() -> None:
    with scripted_model(None) as url:
        pass
    async with provider_at(url) as (provider, clock):
        with pytest.raises(ModelError) as caught:
            await ask(provider, user("Hi"))
    assert caught.value.reason == "unreachable"
    assert len(clock.sleeps) == 4


async def test_without_a_script_every_call_of_many_gets_the_same_text() -> None:
    with scripted_model(None, "--text", "Moin.") as url:
        async with provider_at(url) as (provider, _), asyncio.TaskGroup() as group:
            calls = [group.create_task(ask(provider, user(str(i)))) for i in range(50)]
    assert {call.result()[1].text for call in calls} == {"Moin."}
    assert calls[0].result()[0] == [Delta(text="Moin.")]


def test_a_request_that_is_not_streamed_gets_a_whole_answer(tmp_path: Path) -> None:
    step = {"text": "Hi", "reasoning": "Hm", "tool_calls": [{"name": "a"}], "finish": "length"}
    with scripted_model(write_script(tmp_path, step)) as url:
        body = {"model": "any", "messages": [{"role": "user", "content": "x"}]}
        answer = httpx.post(f"{url}/chat/completions", json=body, trust_env=False).json()
        assert httpx.get(f"{url}/nothing", trust_env=False).status_code == 404
        assert (
            httpx.post(f"{url}/chat/completions", content=b"{", trust_env=False).status_code == 400
        )
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "Hi"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "a", "arguments": "{}"}
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ('{"steps": [{"txt": "typo"}]}', "step 1: .*txt"),
        ('{"steps": [{"when": {"pattern": "("}}]}', "step 1: "),
        ('{"stepz": []}', "stepz"),
        ('{"chunk_chars": 0}', "chunk_chars"),
        ("{", "Expecting"),
    ],
)
def test_a_script_with_a_mistake_does_not_start(tmp_path: Path, script: str, problem: str) -> None:
    path = tmp_path / "script.json"
    path.write_text(script)
    ended = subprocess.run(
        [sys.executable, str(SCRIPTED_MODEL), str(path)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert not ended.stdout
    assert re.search(problem, ended.stderr)
