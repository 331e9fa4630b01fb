"""The words of a tool: what it is asked, what it may answer.

Tools are pure and hold no state: between two effects of one call they keep a note of
msgspec-encodable builtins with the call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from kelpie.core.digests import Digest
from kelpie.core.errors import ConflictError
from kelpie.effects.model import EffectRecord
from kelpie.memory.blocks import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a tool may know of the agent that calls it. ``workspace`` is empty for none."""

    agent_id: str
    workspace: str
    blocks: tuple[Block, ...]

    def require_workspace(self) -> str:
        """Return the workspace.

        Raises:
            ConflictError: The agent has none.
        """
        if not self.workspace:
            raise ConflictError(
                "this agent has no workspace; set its `workspace` to an absolute directory"
            )
        return self.workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReturn:
    """The answer to a call, as the model will read it."""

    text: str
    ok: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryChange:
    """A call that is done by changing core memory; ``blocks`` is all of it."""

    blocks: tuple[Block, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A call that needs an effect; ``note`` comes back when it settles.

    ``args`` are the executor's, ``summary`` is one line for people.
    """

    kind: str
    args: dict[str, Any]
    timeout_ms: int
    summary: str
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """An effect of a call reached an end. ``phase`` counts the call's effects from 0."""

    record: EffectRecord
    phase: int
    note: dict[str, Any]


class Tool(Protocol):
    """Something a model can call."""

    @property
    def name(self) -> str:
        """The name the model uses, unique in a registry."""
        ...

    @property
    def description(self) -> str:
        """What it does, for the model."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON Schema (an object) of its arguments."""
        ...

    @property
    def definition(self) -> Digest:
        """The digest of name, description and parameters; an approval binds to it."""
        ...

    def begin(
        self, arguments: dict[str, Any], context: ToolContext
    ) -> ToolReturn | MemoryChange | Wish:
        """Answer a call whose arguments keep the schema, or say what it needs.

        Raises:
            InputError: The call cannot be made; the model gets the message.
        """
        ...

    def settle(self, arguments: dict[str, Any], settlement: Settlement) -> ToolReturn | Wish:
        """Answer from the outcome of the effect the call wished for, or wish for the next one."""
        ...
