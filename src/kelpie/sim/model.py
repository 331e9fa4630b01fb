"""A simulated model: the OpenAI chat-completions wire over the simulated network.

Stateless: it answers from the conversation alone, so that a call repeated after a crash gets the
same answer, as a script would want it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kelpie.ports.network import HttpRequest
from kelpie.sim.network import Answer

Message = dict[str, Any]


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says: text, or calls as (name, arguments)."""

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


Decide = Callable[[Sequence[Message]], ModelReply]


class SimulatedModel:
    """Answers streamed chat completions.

    Attributes:
        calls: How many requests it has had.
    """

    def __init__(self, decide: Decide) -> None:
        self._decide = decide
        self.calls = 0

    async def answer(self, request: HttpRequest) -> Answer:
        """Return the streamed answer to one chat-completions request."""
        self.calls += 1
        body = msgspec.json.decode(request.body)
        messages = body["messages"]
        assert messages, "a model is asked something"
        assert body["stream"] is True, "a simulated model only streams"
        reply = self._decide(messages)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        half = len(reply.text) // 2
        deltas.extend({"content": part} for part in (reply.text[:half], reply.text[half:]) if part)
        for index, (name, arguments) in enumerate(reply.calls):
            call_id = f"call_{len(messages)}_{index}"
            text = msgspec.json.encode(arguments).decode()
            deltas.append(_call(index, id=call_id, type="function", function={"name": name}))
            deltas.append(_call(index, function={"arguments": text}))
        finish = "tool_calls" if reply.calls else "stop"
        pieces = [_event({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
        pieces.append(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}))
        usage = {"prompt_tokens": 10 * len(messages), "completion_tokens": 5, "total_tokens": 0}
        pieces.append(_event({"choices": [], "usage": usage}))
        pieces.append(b"data: [DONE]\n\n")
        return Answer(headers={"content-type": "text/event-stream"}, pieces=tuple(pieces))


def _call(index: int, **fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


def _event(body: dict[str, Any]) -> bytes:
    chunk = {"id": "sim", "object": "chat.completion.chunk", "model": "simulated", **body}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
