"""A provider repeats what may pass, gives up in time, and says why without telling secrets."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from kelpie.core.errors import InvalidFieldError, ModelError
from kelpie.core.limits import MODEL_RETRIES_MAX
from kelpie.llm.model import ChatMessage, Delta, ModelRequest
from kelpie.llm.openai import OpenAiWire
from kelpie.llm.provider import HttpModelProvider
from kelpie.llm.refusals import TransientModelError
from tests.unit.llm.worlds import JSON, KEY, FakeRng, Scripted, World

TEXT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
GOOD = Scripted(chunks=[TEXT, b"data: [DONE]\n\n"])


def refusal(status: int, message: str = "no", **headers: str) -> Scripted:
    body = json.dumps({"error": {"message": message}}).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Scripted(status=status, chunks=[body], headers={**JSON, **names})


@pytest.mark.parametrize(
    "trouble",
    [
        refusal(429),
        refusal(500),
        refusal(503),
        refusal(529),
        refusal(408),
        Scripted(refuses=True),
        Scripted(breaks=True),
        Scripted(chunks=[b'data: {"error":{"type":"server_error","message":"x"}}\n\n']),
    ],
)
async def test_what_may_pass_is_tried_again_before_the_first_delta(trouble: Scripted) -> None:
    world = World(trouble, trouble, GOOD)
    _, answer = await world.ask()
    assert answer.text == "x"
    assert len(world.network.requests) == 3
    assert world.clock.sleeps == [0.125, 0.25]  # half of the doubling range
    assert world.network.open_count == 0


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (400, "bad field", "bad_request"),
        (400, "This model's maximum context length is 8192 tokens", "too_large"),
        (401, "who?", "auth"),
        (402, "pay", "quota"),
        (403, "no", "auth"),
        (404, "no such model", "bad_request"),
        (413, "big", "too_large"),
        (422, "unprocessable", "bad_request"),
        (302, "elsewhere", "malformed"),
    ],
)
async def test_what_cannot_pass_is_not_tried_again(status: int, message: str, reason: str) -> None:
    world = World(refusal(status, message))
    with pytest.raises(ModelError) as caught:
        await world.ask()
    assert (caught.value.reason, caught.value.status) == (reason, status)
    assert not caught.value.retriable
    assert f"openai: answered {status}: {message}" in str(caught.value)
    assert not world.clock.sleeps


async def test_a_used_up_quota_is_no_rate_limit() -> None:
    body = b'{"error":{"message":"quota","type":"insufficient_quota","code":"insufficient_quota"}}'
    with pytest.raises(ModelError) as caught:
        await World(Scripted(status=429, chunks=[body], headers=JSON)).ask()
    assert caught.value.reason == "quota"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7.125),
        ({"retry_after": "7", "retry_after_ms": "1500"}, 1.625),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10.125),
        ({"retry_after": "soon"}, 0.125),
    ],
)
async def test_the_wait_that_a_provider_asks_for_is_kept(
    headers: dict[str, str], seconds: float
) -> None:
    world = World(refusal(429, **headers), GOOD)
    await world.ask()
    assert world.clock.sleeps == [seconds]


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    world = World(refusal(429, retry_after="3600"))
    with pytest.raises(TransientModelError, match="asks to wait 3600 s") as caught:
        await world.ask()
    assert caught.value.reason == "rate_limited"
    assert not world.clock.sleeps


async def test_retries_are_bounded_by_their_number() -> None:
    world = World(*[refusal(500)] * (MODEL_RETRIES_MAX + 1), fraction=0.999)
    with pytest.raises(TransientModelError, match="answered 500"):
        await world.ask()
    assert len(world.network.requests) == MODEL_RETRIES_MAX + 1


async def test_retries_are_bounded_by_the_deadline() -> None:
    slow = Scripted(status=500, takes_ms=70_000)
    world = World(slow, slow)
    with pytest.raises(TransientModelError):
        await world.ask()
    assert len(world.network.requests) == 2


async def test_after_the_first_delta_nothing_is_repeated() -> None:
    world = World(Scripted(chunks=[TEXT], breaks=True))
    items = aiter(world.provider.stream(world.request()))
    assert await anext(items) == Delta(text="x")
    with pytest.raises(TransientModelError, match="connection was reset"):
        await anext(items)
    assert len(world.network.requests) == 1


def patient(world: World, timeout_ms: int) -> HttpModelProvider:
    return HttpModelProvider(
        name="openai",
        base_url="http://127.0.0.1:9/v1",
        api_key=KEY,
        wire=OpenAiWire(),
        network=world.network,
        clock=world.clock,
        rng=FakeRng(),
        telemetry=world.telemetry,
        timeout_ms=timeout_ms,
    )


async def test_a_stream_that_stalls_ends_at_the_deadline() -> None:
    world = World(Scripted(chunks=[TEXT], hangs=True))
    items = patient(world, 20).stream(world.request())
    assert await anext(items) == Delta(text="x")
    with pytest.raises(ModelError) as caught:
        await anext(items)
    assert caught.value.reason == "timeout"
    assert world.network.open_count == 0


async def test_a_connection_that_stays_open_after_the_answer_delays_it_only_briefly() -> None:
    world = World(Scripted(chunks=[TEXT, b"data: [DONE]\n\n"], hangs=True))
    _, answer = await world.ask()
    assert answer.text == "x"


async def test_leaving_early_closes_the_exchange() -> None:
    world = World(Scripted(chunks=[TEXT], hangs=True))
    async with aclosing(patient(world, 1000).stream(world.request())) as items:
        async for _ in items:
            break
        assert world.network.open_count == 1
    assert world.network.open_count == 0


async def test_a_message_never_holds_the_key_and_never_runs_long() -> None:
    world = World(refusal(401, f"Incorrect API key provided: {KEY}. " + "x" * 5000))
    with pytest.raises(ModelError) as caught:
        await world.ask()
    assert "[key]" in str(caught.value)
    assert len(str(caught.value)) < 700
    told = f"{caught.value!r} {world.telemetry.logs!r} {world.telemetry.spans!r}"
    assert KEY not in told


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>Bad  Gateway</html>", "<html>Bad Gateway</html>"),
        (b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]'),
        (b'[{"error":{"code":400,"message":"in a list"}}]', "in a list"),
        (b'{"message":"bare"}', "bare"),
        (b"", "no explanation"),
        (b"\xff\xfe", "\ufffd"),
        (b"[" * 60_000, "[[["),
        (b"x" * 1_000_000, "xxx"),
    ],
)
async def test_an_error_body_of_any_shape_is_read(body: bytes, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        await World(Scripted(status=400, chunks=[body], headers={})).ask()
    assert said in str(caught.value)


async def test_a_refusal_that_calls_itself_a_success_is_a_refusal() -> None:
    world = World(Scripted(chunks=[b'{"error":{"message":"bad","code":400}}'], headers=JSON))
    with pytest.raises(ModelError, match="bad") as caught:
        await world.ask()
    assert caught.value.reason == "bad_request"


async def test_a_whole_body_is_bounded() -> None:
    world = World(Scripted(chunks=[b" " * 1_000_000] * 5, headers=JSON))
    with pytest.raises(ModelError, match="larger than 4,194,304 bytes"):
        await world.ask()


@pytest.mark.parametrize("handle", ["openai", "openai/", "other/m", "/m"])
async def test_a_handle_of_another_provider_is_refused(handle: str) -> None:
    world = World()
    request = ModelRequest(model=handle, messages=())
    with pytest.raises(InvalidFieldError, match="must read openai/<name>"):
        await anext(aiter(world.provider.stream(request)))


async def test_an_endpoint_that_is_down_has_no_list_of_models() -> None:
    with pytest.raises(ModelError, match="openai: connection refused; check the base URL"):
        await World(Scripted(refuses=True)).provider.list_models()


async def test_telemetry_names_the_call_and_tells_no_content() -> None:
    world = World(GOOD)
    secret = (ChatMessage(role="user", content="my diary"),)
    await world.ask(messages=secret, options={"temperature": 0.5})
    assert world.telemetry.spans == [
        (
            "chat test-model",
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "test-model",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.temperature": 0.5,
                "server.address": "127.0.0.1",
                "server.port": 9,
            },
        )
    ]
    names = {name for name, _, _ in world.telemetry.observations}
    assert names == {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
    assert "diary" not in repr(vars(world.telemetry))


async def test_telemetry_tells_content_when_the_operator_asks_for_it() -> None:
    world = World(GOOD, capture_content=True)
    await world.ask(messages=(ChatMessage(role="user", content="my diary"),))
    attributes: dict[str, Any] = world.telemetry.spans[0][1]
    assert "my diary" in attributes["gen_ai.input.messages"]
