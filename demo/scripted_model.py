"""A model without intelligence: an HTTP server that answers chat completions from a script.

It speaks the OpenAI chat-completions wire (`POST …/chat/completions`, streamed or whole, and
`GET …/models`) and knows nothing about who calls it. Standard library only.

    python scripted_model.py SCRIPT.json [--port 0]     answers from a script
    python scripted_model.py --text "Hello." [--port 0] always answers the same text

It prints one JSON line, `{"host", "port", "url"}`, once it listens, and ends on SIGTERM or SIGINT.
`GET /stats` tells how many calls it has had, and how often each step was taken.

A script is one JSON object:

    {
      "models": ["scripted"],      names in the list of models
      "chunk_chars": 12,           how finely text and arguments are cut
      "chunk_delay_ms": 0,         pause before each chunk of a streamed answer
      "steps": [ … ]
    }

The steps are walked from the top for every call; the first that applies answers. A step without
`when` applies once, a step with `when` as often as it matches; `times` says otherwise for both
(`"times": 0` means without bound). In `when`, everything given must hold:

    "role": "tool"               the role of the last message
    "contains": "text"           is part of the last message's text
    "pattern": "regex"           is found in the last message's text
    "tool": "read_file"          the last message returns a call of this tool
    "user_contains": "text"      is part of the text of the last message with role user

A step answers with any of

    "text": "Hello.",  "reasoning": "Hm.",
    "tool_calls": [{"name": "read_file", "arguments": {"path": "a.txt"}}]
                                 arguments may be a string, which is sent as it is
    "finish": "length"           instead of the reason that fits

or fails: `"fail": {"status": 429, "headers": {"retry-after": "1"}, "body": {…}}` refuses,
`"error_after": 2` sends an error inside the stream after so many chunks, and `"cut_after": 2`
closes the connection there. `"chunk_delay_ms"` and `"first_delay_ms"` may be set per step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 64 * 1024 * 1024
CHARS_PER_TOKEN: Final = 4  # a rough count is enough for a model that does not think

Json = dict[str, Any]


# --- the script ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What the conversation must look like for a step to apply."""

    role: str = ""
    contains: str = ""
    pattern: str = ""
    tool: str = ""
    user_contains: str = ""

    def holds(self, messages: list[Json]) -> bool:
        """Return whether the conversation meets everything that is given."""
        last = messages[-1] if messages else {}
        text = text_of(last)
        return (
            (not self.role or last.get("role") == self.role)
            and self.contains in text
            and (not self.pattern or re.search(self.pattern, text) is not None)
            and (not self.tool or called_tool(messages) == self.tool)
            and (not self.user_contains or self.user_contains in last_user_text(messages))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call to make; string arguments are sent as they are."""

    name: str
    arguments: str | Json = field(default_factory=dict)

    @property
    def arguments_text(self) -> str:
        """The arguments as they go over the wire."""
        if isinstance(self.arguments, str):
            return self.arguments
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A refusal with an HTTP status."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = field(default_factory=lambda: {"error": {"message": "scripted failure"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answer, and when it is given."""

    when: Condition | None = None
    times: int | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()
    finish: str = ""
    fail: Failure | None = None
    error_after: int | None = None
    cut_after: int | None = None
    chunk_delay_ms: float | None = None
    first_delay_ms: float = 0

    @property
    def times_max(self) -> float:
        """How often the step may be taken."""
        times = self.times if self.times is not None else (0 if self.when else 1)
        return times or float("inf")


@dataclass(slots=True, kw_only=True)
class Script:
    """The steps, and how often each was taken."""

    models: tuple[str, ...] = ("scripted",)
    chunk_chars: int = 12
    chunk_delay_ms: float = 0
    steps: tuple[Step, ...] = ()
    taken: list[int] = field(default_factory=list)
    calls: int = 0

    def next_step(self, messages: list[Json]) -> Step | None:
        """Take the first step that applies, None when there is none."""
        for index, step in enumerate(self.steps):
            if self.taken[index] >= step.times_max:
                continue
            if step.when is None or step.when.holds(messages):
                self.taken[index] += 1
                return step
        return None


def load_script(data: Json) -> Script:
    """Return the script that a JSON object describes.

    Raises:
        ValueError: A name or a value is unknown; the message says where.
    """
    steps: list[Step] = []
    for number, fields in enumerate(data.get("steps", []), start=1):
        try:
            steps.append(_load_step(fields))
        except (TypeError, re.error) as error:
            raise ValueError(f"step {number}: {error}") from error
    try:
        script = Script(**{**data, "steps": tuple(steps), "taken": [0] * len(steps)})
    except TypeError as error:
        raise ValueError(str(error)) from error
    if script.chunk_chars < 1:
        raise ValueError("chunk_chars must be at least 1")
    return script


def _load_step(fields: Json) -> Step:
    loaded = dict(fields)
    if "when" in loaded:
        loaded["when"] = Condition(**loaded["when"])
        re.compile(loaded["when"].pattern)
    if "fail" in loaded:
        loaded["fail"] = Failure(**loaded["fail"])
    loaded["tool_calls"] = tuple(Call(**call) for call in loaded.get("tool_calls", ()))
    return Step(**loaded)


def text_of(message: Json) -> str:
    """Return a message's text, whether it is written as a string or as parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def last_user_text(messages: list[Json]) -> str:
    """Return the text of the last message with role user."""
    return next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")


def called_tool(messages: list[Json]) -> str:
    """Return the name of the tool whose return is the last message."""
    wanted = messages[-1].get("tool_call_id") if messages else None
    for message in reversed(messages):
        for call in message.get("tool_calls") or ():
            if wanted and call.get("id") == wanted:
                return str(call["function"]["name"])
    return ""


# --- the wire -----------------------------------------------------------------------------------


def cut(text: str, size: int) -> Iterator[str]:
    """Yield `text` in pieces of `size` characters."""
    for start in range(0, len(text), size):
        yield text[start : start + size]


def step_deltas(step: Step, chunk_chars: int) -> Iterator[Json]:
    """Yield the deltas of a streamed answer; together they are the whole message."""
    yield {"role": "assistant", "content": ""}
    for piece in cut(step.reasoning, chunk_chars):
        yield {"reasoning_content": piece}
    for piece in cut(step.text, chunk_chars):
        yield {"content": piece}
    for index, call in enumerate(step.tool_calls):
        head = {"index": index, "id": f"call_{secrets.token_hex(12)}", "type": "function"}
        yield {"tool_calls": [{**head, "function": {"name": call.name, "arguments": ""}}]}
        for piece in cut(call.arguments_text, chunk_chars):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def step_message(step: Step) -> Json:
    """Return the message of an answer that is not streamed."""
    message: Json = {"role": "assistant", "content": step.text or None}
    if step.reasoning:
        message["reasoning_content"] = step.reasoning
    if step.tool_calls:
        message["tool_calls"] = [
            {
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_text},
            }
            for call in step.tool_calls
        ]
    return message


def step_finish(step: Step) -> str:
    """Return the reason an answer ends with."""
    return step.finish or ("tool_calls" if step.tool_calls else "stop")


def count_usage(step: Step, messages: list[Json]) -> Json:
    """Return token counts that grow with the texts."""
    prompt = sum(len(text_of(message)) for message in messages)
    answer = len(step.text) + len(step.reasoning)
    answer += sum(len(call.arguments_text) for call in step.tool_calls)
    prompt_tokens, answer_tokens = (1 + size // CHARS_PER_TOKEN for size in (prompt, answer))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }


def encode_event(value: Json | Literal["[DONE]"]) -> bytes:
    """Return one server-sent event as one HTTP chunk."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    data = b"data: " + text.encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_response(status: int, body: Any, headers: dict[str, str] | None = None) -> bytes:
    """Return a whole JSON response."""
    data = json.dumps(body, ensure_ascii=False).encode()
    lines = [f"HTTP/1.1 {status} Scripted", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"content-length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data


STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_END: Final = b"0\r\n\r\n"


class Reply(NamedTuple):
    """What to send: pieces with a pause before each, and whether to hang up afterwards."""

    pieces: list[bytes]
    first_delay_s: float = 0
    delay_s: float = 0
    hang_up: bool = False


class ScriptedModel:
    """Turns requests into replies."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def reply(self, method: str, path: str, body: bytes) -> Reply:
        """Return the reply to one request."""
        if method == "POST" and path.endswith("/chat/completions"):
            return self._reply_chat(body)
        if method == "GET" and path.endswith("/models"):
            models = [{"id": name, "object": "model"} for name in self._script.models]
            return Reply([encode_response(200, {"object": "list", "data": models})])
        if method == "GET" and path == "/stats":
            stats = {"calls": self._script.calls, "steps": self._script.taken}
            return Reply([encode_response(200, stats)])
        return Reply([encode_response(404, {"error": {"message": f"no {method} {path}"}})])

    def _reply_chat(self, body: bytes) -> Reply:
        self._script.calls += 1
        try:
            request = json.loads(body)
            messages = list(request["messages"])
            step = self._script.next_step(messages)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return Reply([encode_response(400, {"error": {"message": f"bad request: {error!r}"}})])
        if step is None:
            message = "the script has no step for this conversation"
            return Reply([encode_response(501, {"error": {"message": message}})])
        if step.fail is not None:
            failure = step.fail
            return Reply([encode_response(failure.status, failure.body, failure.headers)])
        head = {
            "id": f"chatcmpl-{self._script.calls}",
            "created": int(time.time()),
            "model": str(request.get("model", "")),
        }
        if request.get("stream"):
            return self._stream(step, head, request, messages)
        choice = {"index": 0, "message": step_message(step), "finish_reason": step_finish(step)}
        usage = count_usage(step, messages)
        whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return Reply([encode_response(200, whole)], first_delay_s=step.first_delay_ms / 1000)

    def _stream(self, step: Step, head: Json, request: Json, messages: list[Json]) -> Reply:
        head = {**head, "object": "chat.completion.chunk"}
        pieces = [
            encode_event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            for delta in step_deltas(step, self._script.chunk_chars)
        ]
        delay_ms = step.chunk_delay_ms
        if delay_ms is None:
            delay_ms = self._script.chunk_delay_ms
        first_s, delay_s = step.first_delay_ms / 1000, delay_ms / 1000
        if step.cut_after is not None:
            return Reply([STREAM_HEAD, *pieces[: step.cut_after]], first_s, delay_s, hang_up=True)
        if step.error_after is not None:
            error = {"error": {"message": "scripted failure", "type": "server_error"}}
            pieces[step.error_after :] = [encode_event(error)]
        else:
            end = {"index": 0, "delta": {}, "finish_reason": step_finish(step)}
            pieces.append(encode_event({**head, "choices": [end]}))
            if (request.get("stream_options") or {}).get("include_usage"):
                usage = count_usage(step, messages)
                pieces.append(encode_event({**head, "choices": [], "usage": usage}))
            pieces.append(encode_event("[DONE]"))
        return Reply([STREAM_HEAD, *pieces, STREAM_END], first_s, delay_s)


# --- the server ---------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, kept alive; requests are answered one after another."""

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Forget the transport, and what was still to be sent."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = self._timer = None

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._buffer += data
        while self._timer is None and self._transport is not None:
            request = self._take_request(self._transport)
            if request is None:
                return
            self._send(self._model.reply(*request))

    def _take_request(self, transport: asyncio.Transport) -> tuple[str, str, bytes] | None:
        """Remove one complete request from the buffer; None while there is none."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                self._refuse(transport, 431)
            return None
        head = self._buffer[:end].decode("latin-1")
        length = re.search(r"\r\ncontent-length:[ \t]*(\d+)", head, re.IGNORECASE)
        size = int(length[1]) if length else 0
        words = head.partition("\r\n")[0].split(" ")
        if len(words) != 3 or re.search(r"\r\ntransfer-encoding:", head, re.IGNORECASE):
            self._refuse(transport, 411 if len(words) == 3 else 400)
            return None
        if size > BODY_BYTES_MAX:
            self._refuse(transport, 413)
            return None
        if len(self._buffer) < end + 4 + size:
            return None
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        return words[0], words[1], body

    def _refuse(self, transport: asyncio.Transport, status: int) -> None:
        body = {"error": {"message": "this request is not understood here"}}
        transport.write(encode_response(status, body))
        transport.close()
        self._transport = None

    def _send(self, reply: Reply) -> None:
        assert self._transport is not None
        if reply.first_delay_s == 0 and reply.delay_s == 0:
            self._transport.write(b"".join(reply.pieces))
            self._end(reply)
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(reply.first_delay_s, self._send_piece, reply, 0)

    def _send_piece(self, reply: Reply, index: int) -> None:
        assert self._transport is not None
        self._transport.write(reply.pieces[index])
        if index + 1 < len(reply.pieces):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(reply.delay_s, self._send_piece, reply, index + 1)
        else:
            self._timer = None
            self._end(reply)
            self.data_received(b"")  # a request may have come meanwhile

    def _end(self, reply: Reply) -> None:
        if reply.hang_up and self._transport is not None:
            self._transport.close()
            self._transport = None


async def serve(script: Script, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    model = ScriptedModel(script)
    server = await loop.create_server(lambda: Connection(model), host, port, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    address = {"host": host, "port": port, "url": f"http://{host}:{port}/v1"}
    print(json.dumps(address), flush=True)
    await stop.wait()
    server.close()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Answer chat completions from a script.")
    parser.add_argument("script", nargs="?", type=Path, help="a JSON file; without it see --text")
    parser.add_argument("--text", default="Hello.", help="what to answer without a script")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    options = parser.parse_args()
    data: Json = {"steps": [{"text": options.text, "times": 0}]}
    try:
        if options.script is not None:
            data = json.loads(options.script.read_bytes())
        script = load_script(data)
    except (OSError, ValueError) as error:
        print(f"{options.script}: {error}", file=sys.stderr)
        return 2
    asyncio.run(serve(script, host=options.host, port=options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
