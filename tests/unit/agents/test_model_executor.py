"""The hands of model calls: stored rows in, a request out, deltas and an answer back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.agents.delta_log import pack_deltas
from kelpie.agents.model import TranscriptMessage, message_key, prompt_key
from kelpie.agents.model_executor import ModelExecutor
from kelpie.core.errors import (
    CorruptionError,
    DiskFullError,
    InvalidFieldError,
    KelpieError,
    ModelError,
)
from kelpie.core.ids import ActorId
from kelpie.core.limits import ANSWER_BYTES_MAX, STREAM_ROW_BYTES_MAX
from kelpie.effects.model import Outcome
from kelpie.llm.model import Delta, ModelAnswer, ModelProvider, ModelRequest, ToolCall
from kelpie.tools.builtin import builtin_registry
from tests.unit.agents.driver import ACTOR, answer
from tests.unit.tools.orders import StoppedClock, make_order

DIGEST = "sha256:prompt"
ARGS = {
    "model": "scripted/one",
    "prompt": DIGEST,
    "sequences": [1, 2, 3],
    "tools": ["read_file"],
    "options": {"temperature": 0},
    "notice": "",
}


class Rows:
    """An agent's rows in memory."""

    def __init__(self, count: int = 3, text: str = "hello") -> None:
        self.rows = {prompt_key(DIGEST): msgspec.msgpack.encode("be kind")}
        for sequence in range(1, count + 1):
            message = TranscriptMessage(
                id=f"m{sequence}",
                sequence=sequence,
                role="user" if sequence % 2 else "assistant",
                content=f"{text} {sequence}",
                at_ms=0,
            )
            self.rows[message_key(sequence)] = msgspec.msgpack.encode(message)

    async def kv_get(self, actor: ActorId, key: str) -> bytes | None:
        return self.rows.get(key)

    async def kv_range(
        self, actor: ActorId, start: str, end: str, *, limit: int, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        assert not descending
        return [(key, self.rows[key]) for key in sorted(self.rows) if start <= key < end][:limit]


class Provider:
    """Yields what it was given; an exception among the items is raised."""

    def __init__(self, *items: Delta | ModelAnswer | KelpieError) -> None:
        self.items = items
        self.requests: list[ModelRequest] = []
        self.closed = False

    async def stream(self, request: ModelRequest) -> AsyncIterator[Delta | ModelAnswer]:
        self.requests.append(request)
        try:
            for item in self.items:
                await asyncio.sleep(0)
                if isinstance(item, KelpieError):
                    raise item
                yield item
        finally:
            self.closed = True

    async def list_models(self) -> list[str]:
        return ["one"]


class Stream:
    """Keeps what was appended; fails on request."""

    def __init__(self, failure: KelpieError | None = None) -> None:
        self.rows: list[bytes] = []
        self.failure = failure

    async def append(self, kind: str, body: bytes) -> None:
        assert kind == "delta"
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.rows.append(body)

    @property
    def deltas(self) -> list[Delta]:
        decode = msgspec.msgpack.Decoder(list[Delta]).decode
        return [delta for row in self.rows for delta in decode(row)]


async def call(
    provider: ModelProvider,
    *,
    rows: Rows | None = None,
    args: dict[str, Any] | None = None,
    stream: Stream | None = None,
    now_ms: int = 0,
) -> Outcome:
    """Execute one model call."""
    executor = ModelExecutor(
        store=rows or Rows(),
        tools=builtin_registry(),
        resolve=lambda handle: provider,
        clock=StoppedClock(now_ms),
    )
    sink = stream or Stream()
    order = make_order("model.generate", {**ARGS, **(args or {})}, stream=sink.append, actor=ACTOR)
    assert executor.promise(order.record.args) == "repeatable"
    assert await executor.reconcile(order) is None
    return await executor.execute(order)


async def test_an_answer_comes_back_after_its_deltas_are_stored() -> None:
    said = answer("hi there", ToolCall(id="1", name="read_file", arguments="{}"))
    provider = Provider(Delta(text="hi "), Delta(text="there"), said)
    stream = Stream()
    outcome = await call(provider, stream=stream)
    assert outcome.status == "done"
    assert msgspec.convert(outcome.result, ModelAnswer) == said
    assert stream.deltas == [Delta(text="hi "), Delta(text="there")]
    assert provider.closed
    (request,) = provider.requests
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "be kind"),
        ("user", "hello 1"),
        ("assistant", "hello 2"),
        ("user", "hello 3"),
    ]
    assert (request.model, request.options) == ("scripted/one", {"temperature": 0})
    assert [tool.name for tool in request.tools] == ["read_file"]


async def test_a_notice_is_the_last_message_and_gaps_in_the_window_are_left_out() -> None:
    provider = Provider(answer("ok"))
    await call(provider, rows=Rows(200), args={"sequences": [2, 150], "notice": "again"})
    contents = [message.content for message in provider.requests[0].messages]
    assert contents == [
        "be kind",
        "hello 2",
        "hello 150",
        "<system_notice>again</system_notice>",
    ]


async def test_an_empty_window_sends_the_system_text_alone() -> None:
    provider = Provider(answer("ok"))
    await call(provider, args={"sequences": []})
    assert len(provider.requests[0].messages) == 1


@pytest.mark.parametrize(
    ("items", "reason", "error"),
    [
        ((ModelError("rate_limited", "slow down"),), "rate_limited", "slow down"),
        ((Delta(text="x"), ModelError("malformed", "cut")), "malformed", "cut"),
        ((InvalidFieldError("options", "no"),), "bad_request", "options: no"),
        ((Delta(text="x"),), "malformed", "ended without an answer"),
        ((answer("x" * ANSWER_BYTES_MAX),), "malformed", "at most"),
    ],
)
async def test_a_call_that_fails_is_an_outcome_with_its_reason(
    items: tuple[Any, ...], reason: str, error: str
) -> None:
    provider = Provider(*items)
    outcome = await call(provider)
    assert (outcome.status, outcome.code, outcome.sent) == ("failed", "model_failed", True)
    assert outcome.result == {"reason": reason}
    assert error in outcome.error
    assert provider.closed


async def test_what_fails_before_sending_says_so() -> None:
    provider = Provider(answer("never"))
    late = await call(provider, now_ms=10**15)
    assert (late.sent, late.result) == (False, {"reason": "timeout"})
    unknown = await call(provider, args={"tools": ["fly"]})
    assert (unknown.sent, unknown.result) == (False, {"reason": "bad_request"})
    large = Rows(20, "x" * 1_000_000)
    outcome = await call(provider, rows=large, args={"sequences": list(range(1, 21))})
    assert (outcome.sent, outcome.result) == (False, {"reason": "too_large"})
    assert provider.requests == []


@pytest.mark.parametrize("args", [{"prompt": "sha256:other"}, {"sequences": [1, 2, 9]}])
async def test_a_missing_row_is_damage_and_nothing_is_sent(args: dict[str, Any]) -> None:
    provider = Provider(answer("never"))
    with pytest.raises(CorruptionError, match="is not stored"):
        await call(provider, args=args)
    assert provider.requests == []


async def test_deltas_that_cannot_be_stored_stop_the_call() -> None:
    deltas = [Delta(text=str(index)) for index in range(50)]
    provider = Provider(*deltas, answer("never"))
    with pytest.raises(DiskFullError):
        await call(provider, stream=Stream(DiskFullError("full")))
    assert provider.closed


async def test_the_card_says_whom_it_asks_and_shows_no_conversation() -> None:
    executor = ModelExecutor(
        store=Rows(),
        tools=builtin_registry(),
        resolve=lambda handle: Provider(),
        clock=StoppedClock(0),
    )
    order = make_order("model.generate", ARGS, actor=ACTOR)
    prepared = await executor.prepare(ACTOR, order.record)
    assert not isinstance(prepared, Outcome)
    assert prepared.card.title == "Ask scripted/one"
    assert "hello" not in repr(prepared)


@given(
    st.lists(
        st.builds(
            Delta,
            text=st.text(max_size=5).map(lambda text: text * 4_000),
            reasoning=st.text(max_size=3).map(lambda text: text * 7_000),
            call_index=st.integers(0, 3),
            call_id=st.sampled_from(["", "id"]),
            call_name=st.sampled_from(["", "read_file"]),
            call_arguments=st.text(max_size=3).map(lambda text: text * 9_000),
        ),
        max_size=8,
    )
)
def test_packed_deltas_hold_everything_in_order_within_their_rows(deltas: list[Delta]) -> None:
    rows = list(pack_deltas(deltas))
    assert all(len(row) <= STREAM_ROW_BYTES_MAX for row in rows)
    decode = msgspec.msgpack.Decoder(list[Delta]).decode
    unpacked = [delta for row in rows for delta in decode(row)]
    for field in ("text", "reasoning", "call_arguments", "call_id", "call_name"):
        before = "".join(getattr(delta, field) for delta in deltas)
        assert "".join(getattr(delta, field) for delta in unpacked) == before
