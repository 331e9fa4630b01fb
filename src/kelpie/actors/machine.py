"""What an actor is: a pure transition function over an immutable state.

``decide`` never awaits, reads a clock, draws a random number or does I/O: what it needs of the
world is in the message and in the `Turn`. The runtime, the simulator and the model checker all run
the same function.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from kelpie.actors.commands import Command, Message
from kelpie.core.ids import ActorId, derive_uuid
from kelpie.storage.records import StoredActor

S = TypeVar("S")


class _Ordinals:
    """Counts the ids a turn derives."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The world as one turn sees it.

    Attributes:
        actor: Whose turn it is.
        now_ms: Wall time at the turn's start, constant through the turn.
        seed: 16 random bytes; ids derive from it.
        principal: Who caused the turn: ``system``, ``actor:<id>`` or a caller's identity.
    """

    actor: ActorId
    now_ms: int
    seed: bytes
    principal: str
    _ordinals: _Ordinals = field(default_factory=_Ordinals)

    def new_uuid(self) -> str:
        """Return the turn's next id; the n-th call of a turn gives the same id in a re-run."""
        ordinal = self._ordinals.next
        self._ordinals.next = ordinal + 1
        return derive_uuid(self.seed, ordinal)

    def new_id(self, prefix: str) -> str:
        """Return ``<prefix>-<uuid4>``."""
        return f"{prefix}-{self.new_uuid()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Generic[S]):
    """The outcome of one turn: the next state and what to do, in order."""

    state: S
    commands: tuple[Command, ...] = ()


class Machine(Protocol[S]):
    """The contract between an actor type and the runtime.

    More than seven members, because codec, transition and query belong to one type and are always
    implemented together.
    """

    @property
    def type_name(self) -> str:
        """The ``type`` segment of its actors' ids."""
        ...

    @property
    def schema_version(self) -> int:
        """The version of the encoded state, from 1."""
        ...

    @property
    def message_type(self) -> Any:
        """The union of tagged `Message` structs that ``decide`` accepts, for decoding."""
        ...

    def create(self, actor: ActorId) -> S:
        """Return the state of an actor that does not exist yet."""
        ...

    def load(self, stored: StoredActor) -> S:
        """Decode a stored state, up-casting older schema versions.

        Raises:
            StoreVersionError: ``stored.schema_version`` is unknown to this program.
        """
        ...

    def dump(self, state: S) -> bytes:
        """Encode a state at ``schema_version``."""
        ...

    def decide(self, state: S, message: Message, turn: Turn) -> Decision[S]:
        """Return what follows from ``message``.

        Raises:
            KelpieError: The message is refused; nothing changes, the caller gets the error.
        """
        ...

    def query(self, state: S, query: Message) -> Any:
        """Answer a read-only question about the last finished turn's state.

        Raises:
            KelpieError: The question cannot be answered.
        """
        ...
