"""The request of a model call, read back from the agent's own rows.

Reads only. A row that is missing is damage and is never skipped; a conversation beyond
``CONTEXT_BYTES_MAX`` is refused before anything is sent.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.agents.model import TranscriptMessage, message_key, prompt_key
from kelpie.core.errors import CorruptionError, ModelError
from kelpie.core.ids import ActorId
from kelpie.core.limits import CONTEXT_BYTES_MAX
from kelpie.llm.model import ChatMessage, ModelRequest
from kelpie.storage.protocol import KvStore
from kelpie.tools.registry import ToolRegistry

_PAGE_ROWS: Final = 64
_message_decoder: Final = msgspec.msgpack.Decoder(TranscriptMessage)
_text_decoder: Final = msgspec.msgpack.Decoder(str)


async def build_request(
    store: KvStore, tools: ToolRegistry, actor: ActorId, args: dict[str, Any]
) -> ModelRequest:
    """Return the request that a ``model.generate`` effect's arguments name.

    Raises:
        CorruptionError: The prompt or a message is not stored.
        ModelError: The conversation is too large to send (reason ``too_large``).
        NotFoundError: A tool does not exist any more.
    """
    prompt = await _load_prompt(store, actor, args["prompt"])
    transcript = await _load_messages(store, actor, args["sequences"])
    messages = [ChatMessage(role="system", content=prompt)]
    messages.extend(_to_chat(message) for message in transcript)
    if args.get("notice"):
        text = f"<system_notice>{args['notice']}</system_notice>"
        messages.append(ChatMessage(role="user", content=text))
    return ModelRequest(
        model=args["model"],
        messages=tuple(messages),
        tools=tools.schemas(args["tools"]),
        options=args["options"],
    )


async def _load_prompt(store: KvStore, actor: ActorId, digest: str) -> str:
    value = await store.kv_get(actor, prompt_key(digest))
    if value is None:
        raise CorruptionError(f"the system text {digest} of {actor} is not stored")
    return _text_decoder.decode(value)


async def _load_messages(
    store: KvStore, actor: ActorId, sequences: list[int]
) -> list[TranscriptMessage]:
    if not sequences:
        return []
    wanted = {message_key(sequence) for sequence in sequences}
    start, end = message_key(sequences[0]), message_key(sequences[-1] + 1)
    found: list[TranscriptMessage] = []
    size = 0
    while True:
        rows = await store.kv_range(actor, start, end, limit=_PAGE_ROWS)
        for key, value in rows:
            if key in wanted:
                size += len(value)
                found.append(_message_decoder.decode(value))
        if size > CONTEXT_BYTES_MAX:
            text = f"the conversation has more than {CONTEXT_BYTES_MAX:,} bytes"
            raise ModelError("too_large", text)
        if len(rows) < _PAGE_ROWS:
            break
        start = rows[-1][0] + "\0"
    if len(found) != len(wanted):
        missing = min(wanted - {message_key(message.sequence) for message in found})
        raise CorruptionError(f"the transcript row {missing} of {actor} is not stored")
    return found


def _to_chat(message: TranscriptMessage) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )
