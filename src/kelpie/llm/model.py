"""The provider-neutral shape of a model call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "tool_calls", "length", "content_filter"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call as the model wrote it; ``arguments`` is unparsed JSON text."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the conversation sent to a model.

    ``content`` is text, or a list of parts (``{"type": "text", "text"}`` or
    ``{"type": "image", "media_type", "data"}`` with base64 data). ``tool_call_id`` and ``name``
    are set on role ``tool``.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""


class ToolSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as offered to the model; ``parameters`` is a JSON Schema object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model.

    ``model`` is a handle ``<provider>/<name>``; ``options`` are provider-neutral sampling
    settings: ``temperature``, ``max_tokens``, ``parallel_tool_calls``, ``tool_choice``
    (``auto``, ``required``, ``none`` or a tool's name).
    """

    model: str
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSchema, ...] = ()
    options: dict[str, Any] = {}


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts as the provider reported them; zero where it did not."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A complete answer."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish: FinishReason
    usage: Usage = Usage()
    model: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of an answer while it streams.

    ``call_index`` orders parallel tool calls; ``call_id`` and ``call_name`` come with a call's
    first piece, ``call_arguments`` with every piece.
    """

    text: str = ""
    reasoning: str = ""
    call_index: int = -1
    call_id: str = ""
    call_name: str = ""
    call_arguments: str = ""


class ModelProvider(Protocol):
    """One provider, one endpoint."""

    def stream(self, request: ModelRequest) -> AsyncIterator[Delta | ModelAnswer]:
        """Yield deltas as they arrive, then exactly one `ModelAnswer`, last.

        Retries 429 and 5xx before the first delta only, with jitter, honouring ``retry-after``.

        Raises:
            ModelError: The provider refused, failed, or answered garbage.
        """
        ...

    async def list_models(self) -> list[str]:
        """Return the model names the endpoint offers, without the provider's prefix.

        Raises:
            ModelError: The endpoint does not answer.
        """
        ...
