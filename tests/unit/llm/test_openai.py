"""The OpenAI wire, byte for byte, with the habits of those who imitate it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie.core.errors import InvalidFieldError, ModelError
from kelpie.llm.model import ChatMessage, Delta, ModelAnswer, ToolCall, ToolSchema, Usage
from tests.unit.llm.worlds import JSON, Scripted, World, joined_text, splits

READ = ToolSchema(name="read_file", description="Reads.", parameters={"type": "object"})


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"object": "chat.completion.chunk", "model": "m-1", "choices": [choice]})


def call(name: str | None = None, arguments: Any = None, **fields: Any) -> bytes:
    function = {"name": name, "arguments": arguments}
    return chunk({"tool_calls": [{**fields, "function": function}]})


USAGE = event(
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }
)
DONE = b"data: [DONE]\n\n"


async def ask(*chunks: bytes, **fields: Any) -> tuple[list[Delta], ModelAnswer]:
    return await World(Scripted(chunks=chunks)).ask(**fields)


async def calls_of(*chunks: bytes) -> list[tuple[str, str, str]]:
    deltas, answer = await ask(*chunks, chunk(finish="stop"), DONE)
    assert answer.finish == "tool_calls"
    for index, made in enumerate(answer.tool_calls):
        own = [delta for delta in deltas if delta.call_index == index]
        assert own[0].call_id == made.id
        assert "".join(delta.call_name for delta in own) == made.name
        assert ("".join(delta.call_arguments for delta in own) or "{}") == made.arguments
    assert len({made.id for made in answer.tool_calls}) == len(answer.tool_calls)
    return [(made.id, made.name, made.arguments) for made in answer.tool_calls]


async def test_text_reasoning_and_usage_become_deltas_and_one_answer() -> None:
    deltas, answer = await ask(
        b": OPENROUTER PROCESSING\n\n",
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Hm."}),
        chunk({"reasoning": " So."}),
        chunk({"content": "Grüß "}),
        chunk({"content": "dich 🐎"}),
        chunk(finish="stop"),
        USAGE,
        DONE,
    )
    assert [delta.text for delta in deltas if delta.text] == ["Grüß ", "dich 🐎"]
    assert answer == ModelAnswer(
        text="Grüß dich 🐎",
        reasoning="Hm. So.",
        finish="stop",
        usage=Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=3, reasoning_tokens=2),
        model="m-1",
    )


STREAM = (
    chunk({"content": "é🐎"})
    + call("read_file", '{"p":"ü', index=0, id="a")
    + call(arguments='"}', index=0)
    + chunk(finish="tool_calls")
    + DONE
)


async def test_an_answer_does_not_depend_on_where_its_bytes_are_cut() -> None:
    wanted = ToolCall(id="a", name="read_file", arguments='{"p":"ü"}')
    for chunks in splits(STREAM):
        deltas, answer = await ask(*chunks)
        assert joined_text(deltas) == answer.text == "é🐎"
        assert answer.tool_calls == (wanted,)


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=20))
async def test_any_number_of_cuts_gives_the_same_answer(cuts: list[int]) -> None:
    edges = sorted({0, len(STREAM), *cuts})
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    _, answer = await ask(*pieces)
    assert (answer.text, answer.tool_calls[0].arguments) == ("é🐎", '{"p":"ü"}')


async def test_parallel_calls_are_assembled_by_index_even_when_interleaved() -> None:
    assert await calls_of(
        call("a", "", index=0, id="x"),
        call("b", "", index=1, id="y"),
        call(arguments='{"n":', index=0),
        call(arguments='{"m":', index=1),
        call(arguments="1}", index=0),
        call(arguments="2}", index=1),
    ) == [("x", "a", '{"n":1}'), ("y", "b", '{"m":2}')]


async def test_one_index_for_all_calls_is_told_apart_by_ids() -> None:
    assert await calls_of(
        call("a", "{}", index=0, id="x"), call("b", '{"m":2}', index=0, id="y")
    ) == [("x", "a", "{}"), ("y", "b", '{"m":2}')]


async def test_pieces_without_index_continue_the_call_of_their_id_or_the_last_one() -> None:
    assert await calls_of(
        call("a", '{"n"', id="x"),
        call(arguments=":", id="x"),
        call(arguments="1}"),
        call("b", "{}", id="y"),
    ) == [("x", "a", '{"n":1}'), ("y", "b", "{}")]


async def test_an_id_and_a_name_repeated_in_every_piece_make_one_call() -> None:
    assert await calls_of(
        call("a", "", index=0, id="x"),
        call("a", '{"n":', index=0, id="x"),
        call("a", "1}", index=0, id="x"),
    ) == [("x", "a", '{"n":1}')]
    assert await calls_of(
        call("a", "", id="x"), call("a", '{"n":', id="x"), call("a", "1}", id="x")
    ) == [("x", "a", '{"n":1}')]


async def test_whole_calls_with_one_id_for_all_get_ids_of_their_own() -> None:
    made = await calls_of(call("a", '{"n":1}', id="x"), call("a", '{"n":2}', id="x"))
    assert [arguments for _, _, arguments in made] == ['{"n":1}', '{"n":2}']
    assert made[0][0] == "x"
    assert made[1][0].startswith("call_")


async def test_whole_calls_without_index_and_id_are_separate_calls_with_fresh_ids() -> None:
    made = await calls_of(call("a", '{"n":1}'), call("b", {"m": 2}))
    assert [(name, arguments) for _, name, arguments in made] == [
        ("a", '{"n":1}'),
        ("b", '{"m":2}'),
    ]


async def test_a_name_that_comes_late_names_its_call() -> None:
    assert await calls_of(
        call("", "", index=0, id="x"), call("a", "", index=0), call(arguments="{}", index=0)
    ) == [("x", "a", "{}")]


async def test_malformed_arguments_are_passed_through_as_text() -> None:
    assert await calls_of(call("a", '{"n": 1,,', index=0, id="x")) == [("x", "a", '{"n": 1,,')]


async def test_a_call_without_a_name_is_malformed() -> None:
    with pytest.raises(ModelError, match="tool call 0 of the answer has no name") as caught:
        await ask(call(None, "{}", index=0, id="x"), chunk(finish="tool_calls"), DONE)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("eos", "stop"),
        ("tool_calls", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
    ],
)
async def test_finish_reasons_are_named_in_our_words(said: str, meant: str) -> None:
    _, answer = await ask(chunk({"content": "x"}), chunk(finish=said), DONE)
    assert answer.finish == meant


async def test_an_end_without_done_or_without_finish_is_enough() -> None:
    assert (await ask(chunk({"content": "x"}), chunk(finish="stop")))[1].text == "x"
    assert (await ask(chunk({"content": "x"}), DONE))[1].finish == "stop"


async def test_nothing_counts_after_the_end_and_other_choices_never_do() -> None:
    other = event({"choices": [{"index": 1, "delta": {"content": "other"}}]})
    _, answer = await ask(other, chunk({"content": "x"}), DONE + chunk({"content": "late"}))
    assert answer.text == "x"


async def test_a_stream_that_is_cut_off_is_malformed() -> None:
    for chunks in ((), (chunk({"content": "x"}),)):
        with pytest.raises(ModelError, match="cut off") as caught:
            await ask(*chunks)
        assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: {\n\n",
        b"data: <html>\n\n",
        b'data: {"choices": 3}\n\n',
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"error": ' + b"[" * 50_000 + b"\n\n",
        b'data: {"usage":{"prompt_tokens":-1}}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\ud800 alone"}}]}\n\n',
    ],
)
async def test_garbage_in_the_stream_is_malformed(garbage: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        await ask(chunk({"content": "x"}), garbage)
    assert caught.value.reason == "malformed"


async def test_a_server_that_does_not_stream_is_understood() -> None:
    message = {"content": "x", "tool_calls": [{"id": "i", "function": {"name": "a"}}]}
    body = {"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]}
    world = World(Scripted(chunks=[json.dumps(body).encode()], headers=JSON))
    deltas, answer = await world.ask()
    assert joined_text(deltas) == answer.text == "x"
    assert answer.tool_calls == (ToolCall(id="i", name="a", arguments="{}"),)


async def test_content_in_parts_and_a_refusal_are_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": []}]
    _, answer = await ask(chunk({"content": parts}), chunk({"refusal": "no"}), DONE)
    assert answer.text == "ano"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ({"error": {"message": "boom", "type": "server_error"}}, "server"),
        ({"error": {"message": "boom", "code": 429}}, "rate_limited"),
        ({"error": "boom"}, "server"),
        ({"object": "error", "message": "boom", "code": 400}, "bad_request"),
    ],
)
async def test_an_error_inside_the_stream_is_typed(error: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match="boom") as caught:
        await ask(chunk({"content": "x"}), event(error))
    assert caught.value.reason == reason


async def test_an_answer_of_three_megabytes_is_whole_and_one_of_five_is_refused() -> None:
    piece = "ä" * 32_768  # 64 KiB each
    _, answer = await ask(*[chunk({"content": piece})] * 48, chunk(finish="stop"), DONE)
    assert answer.text == piece * 48
    world = World(Scripted(chunks=[chunk({"content": piece})] * 80))
    with pytest.raises(ModelError, match="larger than 4,194,304 bytes") as caught:
        await world.ask()
    assert caught.value.reason == "too_large"
    assert world.network.open_count == 0


def sent(world: World) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(world.network.requests[0].body)
    return body


async def test_a_request_goes_out_in_the_wires_words() -> None:
    world = World(Scripted(chunks=[DONE]))
    image = {"type": "image", "media_type": "image/png", "data": "QUJD"}
    messages = (
        ChatMessage(role="system", content="Be kind."),
        ChatMessage(role="user", content=[{"type": "text", "text": "See"}, image]),
        ChatMessage(
            role="assistant", tool_calls=(ToolCall(id="i", name="read_file", arguments="{}"),)
        ),
        ChatMessage(role="tool", content="text", tool_call_id="i", name="read_file"),
    )
    await world.ask(
        messages=messages,
        tools=(READ,),
        options={
            "temperature": 0.5,
            "max_tokens": 9,
            "parallel_tool_calls": False,
            "tool_choice": "read_file",
        },
    )
    request = world.network.requests[0]
    assert request.url == "http://127.0.0.1:9/v1/chat/completions"
    assert request.headers["authorization"].startswith("Bearer sk-")
    assert sent(world) == {
        "model": "test-model",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "i",
                        "type": "function",
                        "function": {"name": "read_file", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "content": "text", "tool_call_id": "i"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "read_file",
                    "description": "Reads.",
                    "parameters": {"type": "object"},
                },
            }
        ],
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "read_file"}},
    }


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"options": {"heat": 1}}, "options: .*heat"),
        ({"options": {"max_tokens": 0}}, r"options: .*max_tokens"),
        ({"options": {"tool_choice": "fly"}}, "options.tool_choice: 'fly'"),
        ({"options": {"tool_choice": "required"}}, "options.tool_choice: 'required'"),
        (
            {"messages": (ChatMessage(role="tool", content=[{"type": "image"}]),)},
            "messages: .*'image'.*tool",
        ),
    ],
)
async def test_what_the_wire_cannot_carry_is_refused_before_it_is_sent(
    fields: dict[str, Any], named: str
) -> None:
    world = World()
    with pytest.raises(InvalidFieldError, match=named):
        await world.ask(**fields)
    assert not world.network.requests


async def test_the_list_of_models_is_read_or_typed_as_malformed() -> None:
    good = World(Scripted(chunks=[b'{"data":[{"id":"a"},{"id":"b","x":1}]}'], headers=JSON))
    assert await good.provider.list_models() == ["a", "b"]
    assert good.network.requests[0].url.endswith("/v1/models")
    with pytest.raises(ModelError, match="list of models is malformed"):
        await World(Scripted(chunks=[b"<html>"])).provider.list_models()
