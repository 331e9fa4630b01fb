"""The Anthropic wire, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kelpie.core.errors import InvalidFieldError, ModelError
from kelpie.llm.model import ChatMessage, ModelAnswer, ToolCall, ToolSchema, Usage
from tests.unit.llm.worlds import Scripted, World, joined_text, splits

READ = ToolSchema(name="read", description="Reads.", parameters={"type": "object"})


def event(kind: str, **fields: Any) -> bytes:
    body = json.dumps({"type": kind, **fields}, ensure_ascii=False)
    return f"event: {kind}\ndata: {body}\n\n".encode()


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def begin(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def end(reason: str) -> bytes:
    return event(
        "message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 7}
    ) + event("message_stop")


START = event(
    "message_start",
    message={
        "model": "claude-x",
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 2,
            "output_tokens": 1,
        },
    },
)
STREAM = b"".join(
    [
        START,
        event("ping"),
        begin(0, "thinking", thinking=""),
        delta(0, "thinking_delta", thinking="Hm ü"),
        delta(0, "signature_delta", signature="c2ln"),
        event("content_block_stop", index=0),
        begin(1, "text", text=""),
        delta(1, "text_delta", text="Ja 🐎"),
        event("content_block_stop", index=1),
        begin(2, "tool_use", id="toolu_1", name="read", input={}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"p":'),
        delta(2, "input_json_delta", partial_json='"ü"}'),
        event("content_block_stop", index=2),
        begin(3, "tool_use", id="toolu_2", name="list", input={}),
        event("content_block_stop", index=3),
        begin(4, "tool_use", id="toolu_3", name="read", input={"p": 1}),
        event("content_block_stop", index=4),
        begin(5, "server_tool_use", id="srv", name="search"),
        delta(5, "input_json_delta", partial_json='{"q":1}'),
        event("something_new", index=9),
        end("tool_use"),
    ]
)
ANSWER = ModelAnswer(
    text="Ja 🐎",
    reasoning="Hm ü",
    tool_calls=(
        ToolCall(id="toolu_1", name="read", arguments='{"p":"ü"}'),
        ToolCall(id="toolu_2", name="list", arguments="{}"),
        ToolCall(id="toolu_3", name="read", arguments='{"p":1}'),
    ),
    finish="tool_calls",
    usage=Usage(prompt_tokens=16, completion_tokens=7, cached_tokens=4),
    model="claude-x",
)


def world_of(*chunks: bytes) -> World:
    return World(Scripted(chunks=chunks), wire="anthropic")


async def test_an_answer_does_not_depend_on_where_its_bytes_are_cut() -> None:
    for chunks in splits(STREAM):
        deltas, answer = await world_of(*chunks).ask()
        assert answer == ANSWER
        assert joined_text(deltas) == answer.text


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("refusal", "content_filter"),
    ],
)
async def test_stop_reasons_are_named_in_our_words(said: str, meant: str) -> None:
    _, answer = await world_of(START, end(said)).ask()
    assert answer.finish == meant


async def test_content_may_come_with_a_blocks_start_and_nothing_counts_after_the_end() -> None:
    blocks = begin(0, "thinking", thinking="Hm") + begin(1, "text", text="Ja")
    late = begin(2, "text", text="late")
    _, answer = await world_of(START, blocks, end("end_turn") + late).ask()
    assert (answer.reasoning, answer.text) == ("Hm", "Ja")


async def test_an_answer_without_counts_has_none() -> None:
    stop = event("message_delta", delta={"stop_reason": "end_turn"})
    _, answer = await world_of(event("message_start"), stop).ask()
    assert answer.usage == Usage()
    assert answer.model == "test-model"


async def test_a_stream_that_is_cut_off_is_malformed() -> None:
    with pytest.raises(ModelError, match="cut off") as caught:
        await world_of(START, begin(0, "text"), delta(0, "text_delta", text="x")).ask()
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {\n\n",
        b'data: {"type": 3}\n\n',
        begin(0, "tool_use", id="a", name="b") * 2,
        b'data: {"type":"content_block_start","content_block":{"input":'
        + b'{"a":' * 50_000
        + b"\n\n",
    ],
)
async def test_garbage_in_the_stream_is_malformed(garbage: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        await world_of(START, garbage).ask()
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("kind", "message", "reason"),
    [
        ("overloaded_error", "Overloaded", "server"),
        ("rate_limit_error", "slow", "rate_limited"),
        ("authentication_error", "key", "auth"),
        ("billing_error", "pay", "quota"),
        ("invalid_request_error", "prompt is too long: 9 tokens", "too_large"),
        ("invalid_request_error", "max_tokens: no", "bad_request"),
    ],
)
async def test_an_error_event_is_typed(kind: str, message: str, reason: str) -> None:
    text = begin(0, "text", text="x")
    error = event("error", error={"type": kind, "message": message})
    with pytest.raises(ModelError, match=message) as caught:
        await world_of(START, text, error).ask()
    assert caught.value.reason == reason


IMAGE = {"type": "image", "media_type": "image/png", "data": "QUJD"}
CONVERSATION = (
    ChatMessage(role="system", content="Be kind."),
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content=[{"type": "text", "text": "See"}, IMAGE]),
    ChatMessage(
        role="assistant",
        content="Ok",
        tool_calls=(
            ToolCall(id="functions.read:0", name="read", arguments='{"p":1}'),
            ToolCall(id="b", name="read", arguments="{oops"),
        ),
    ),
    ChatMessage(role="tool", content="one", tool_call_id="functions.read:0"),
    ChatMessage(role="tool", content="", tool_call_id="b"),
    ChatMessage(role="user", content="Go on"),
    ChatMessage(role="assistant", content=""),
)


async def test_a_call_goes_out_with_its_key_its_tools_and_its_options() -> None:
    world = world_of(START, end("end_turn"))
    await world.ask(
        messages=CONVERSATION,
        tools=(READ,),
        options={"parallel_tool_calls": False, "tool_choice": "required", "temperature": 0.5},
    )
    request = world.network.requests[0]
    assert request.url == "http://127.0.0.1:9/v1/messages"
    assert request.headers["x-api-key"].startswith("sk-")
    assert request.headers["anthropic-version"] == "2023-06-01"
    body = json.loads(request.body)
    assert body["tools"] == [
        {"name": "read", "description": "Reads.", "input_schema": {"type": "object"}}
    ]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert body["max_tokens"] > 0
    assert body["temperature"] == 0.5


async def test_a_conversation_goes_out_in_the_wires_shape() -> None:
    world = world_of(START, end("end_turn"))
    await world.ask(messages=CONVERSATION)
    body = json.loads(world.network.requests[0].body)
    assert body["system"] == "Be kind.\n\nBe brief."
    source = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    assert body["messages"] == [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See"}, {"type": "image", "source": source}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Ok"},
                {
                    "type": "tool_use",
                    "id": "functions_read_0",
                    "name": "read",
                    "input": {"p": 1},
                },
                {
                    "type": "tool_use",
                    "id": "b",
                    "name": "read",
                    "input": {"malformed_arguments": "{oops"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "functions_read_0",
                    "content": [{"type": "text", "text": "one"}],
                },
                {"type": "tool_result", "tool_use_id": "b", "content": []},
                {"type": "text", "text": "Go on"},
            ],
        },
    ]


async def test_a_part_of_unknown_kind_is_refused_before_it_is_sent() -> None:
    world = world_of()
    message = ChatMessage(role="system", content=[{"type": "image"}])
    with pytest.raises(InvalidFieldError, match=r"messages: .*'image'.*system"):
        await world.ask(messages=(message,))
    assert not world.network.requests


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ({}, None),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "read"}, {"type": "tool", "name": "read"}),
        ({"parallel_tool_calls": True}, {"type": "auto"}),
    ],
)
async def test_a_tool_choice_is_translated(
    options: dict[str, Any], choice: dict[str, Any] | None
) -> None:
    world = world_of(START, end("end_turn"))
    await world.ask(tools=(READ,), options=options)
    assert json.loads(world.network.requests[0].body).get("tool_choice") == choice


async def test_the_list_of_models_is_read() -> None:
    world = world_of(b'{"data":[{"type":"model","id":"claude-x"}],"has_more":false}')
    assert await world.provider.list_models() == ["claude-x"]
