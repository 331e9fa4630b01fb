"""A simulated model: the OpenAI chat-completions wire over the simulated network.

Stateless: it answers from the conversation alone, so that a call repeated after a crash gets the
same answer, as a script would want it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from kelpie.ports.network import HttpRequest
from kelpie.sim.faults.plan import Faults, NoFaults
from kelpie.sim.network import Answer

Message = dict[str, Any]


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says: text, or calls as (name, arguments)."""

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


Decide = Callable[[Sequence[Message]], ModelReply]

SILENCE_S: Final = 86_400.0
"""Longer than anybody waits for a model."""
NO_SUCH_TOOL: Final = "summon_demons"
_STREAM: Final = {"content-type": "text/event-stream"}
_JSON: Final = {"content-type": "application/json"}


class SimulatedModel:
    """Answers streamed chat completions.

    Attributes:
        calls: How many requests it has had.
    """

    def __init__(self, decide: Decide, faults: Faults | None = None) -> None:
        self._decide = decide
        self._faults = faults or NoFaults()
        self.calls = 0

    async def answer(self, request: HttpRequest) -> Answer:
        """Return the streamed answer to one chat-completions request."""
        self.calls += 1
        body = msgspec.json.decode(request.body)
        messages = body["messages"]
        assert messages, "a model is asked something"
        assert body["stream"] is True, "a simulated model only streams"
        refusal = self._refuse()
        if refusal is not None:
            return refusal
        reply = self._spoil(self._decide(messages))
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        half = len(reply.text) // 2
        deltas.extend({"content": part} for part in (reply.text[:half], reply.text[half:]) if part)
        for index, (name, arguments) in enumerate(reply.calls):
            call_id = f"call_{len(messages)}_{index}"
            text = msgspec.json.encode(arguments).decode()
            if self._faults.fires("model.bad_arguments"):
                text = text[: len(text) // 2]
            deltas.append(_call(index, id=call_id, type="function", function={"name": name}))
            deltas.append(_call(index, function={"arguments": text}))
        finish = "tool_calls" if reply.calls else "stop"
        pieces = [_event({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
        pieces.append(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
        usage = {"prompt_tokens": 10 * len(messages), "completion_tokens": 5, "total_tokens": 0}
        pieces.append(_event({"choices": [], "usage": usage}))
        pieces.append(b"data: [DONE]\n\n")
        if self._faults.fires("model.cut_answer"):
            pieces = pieces[: 1 + self._faults.below("model.cut_answer", len(pieces) - 1)]
        return Answer(headers=_STREAM, pieces=tuple(pieces))

    def _refuse(self) -> Answer | None:
        """Return what comes instead of an answer, if something does."""
        if self._faults.fires("model.timeout"):
            return Answer(headers=_STREAM, pieces=(b"",), pause_s=SILENCE_S)
        if self._faults.fires("model.failure"):
            return _refusal(500, "the simulated provider failed")
        if self._faults.fires("model.rate_limited"):
            return _refusal(429, "too many simulated requests", {"retry-after": "2"})
        if self._faults.fires("model.garbage"):
            return Answer(headers=_JSON, pieces=(b"<html>not json",))
        return None

    def _spoil(self, reply: ModelReply) -> ModelReply:
        """Return what the model says if it is out of its mind, else ``reply``."""
        if self._faults.fires("model.empty_answer"):
            return ModelReply()
        if reply.calls and self._faults.fires("model.unknown_tool"):
            return ModelReply(calls=((NO_SUCH_TOOL, {}),))
        return reply


def _refusal(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    body = msgspec.json.encode({"error": {"message": text}})
    return Answer(status=status, headers={**_JSON, **(headers or {})}, pieces=(body,))


def _call(index: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


def _event(body: dict[str, Any]) -> bytes:
    chunk = {"id": "sim", "object": "chat.completion.chunk", "model": "simulated", **body}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
