"""What a provider's wire is: how a request is written and how its answer is read.

Wires are pure: no network, no clock. `kelpie.llm.provider` moves the bytes.
"""

from __future__ import annotations

from typing import Protocol

from kelpie.llm.answer import NewCallId
from kelpie.llm.model import Delta, ModelAnswer, ModelRequest
from kelpie.llm.sse import ServerSentEvent


class Assembler(Protocol):
    """Reads one answer."""

    @property
    def done(self) -> bool:
        """Whether the stream has said that nothing follows."""
        ...

    def feed(self, event: ServerSentEvent) -> list[Delta]:
        """Return what ``event`` adds to the answer; often one delta, sometimes none.

        Raises:
            ModelError: The event is an error, is malformed, or passes a limit.
        """
        ...

    def finish(self) -> ModelAnswer:
        """Return the whole answer, once the stream has ended.

        Raises:
            ModelError: The stream was cut off before the answer was complete.
        """
        ...


class Wire(Protocol):
    """One provider's dialect."""

    @property
    def chat_path(self) -> str:
        """The path of a model call below the base URL."""
        ...

    @property
    def models_path(self) -> str:
        """The path of the list of models below the base URL."""
        ...

    def headers(self, api_key: str) -> dict[str, str]:
        """Return the headers that every request needs; ``api_key`` may be empty."""
        ...

    def encode(self, name: str, request: ModelRequest) -> bytes:
        """Return the body of a streaming call of the model ``name``.

        Raises:
            InvalidFieldError: An option is invalid, or a message does not fit the wire.
        """
        ...

    def assembler(self, *, new_call_id: NewCallId) -> Assembler:
        """Return a reader for one answer."""
        ...
