"""What an actor is: a pure transition function over an immutable state.

``decide`` never awaits, reads a clock, draws a random number or does I/O: what it needs of the
world is in the message and in the `Turn`. The runtime, the simulator and the model checker all run
the same function.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from kelpie.actors.commands import Command, Message
from kelpie.core.ids import ActorId, derive_uuid
from kelpie.storage.records import StoredActor

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


class Turn(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """The world as one turn sees it. Read-only; made once per turn, so it is a struct.

    Attributes:
        actor: Whose turn it is.
        now_ms: Wall time at the turn's start, constant through the turn.
        seed: Random bytes; with ``number`` they are this turn's alone.
        principal: Who caused the turn: ``system``, ``actor:<id>`` or a caller's identity.
        request_id: Names the request across attempts (a client's key, a stored message, a fired
            reminder); empty when the turn cannot happen again.
        number: Which of the turns that share the seed, from 1; 0 when the seed is this turn's own.
    """

    actor: ActorId
    now_ms: int
    seed: bytes
    principal: str
    request_id: str = ""
    number: int = 0
    _ordinal: int = 0

    def material(self) -> bytes:
        """Return bytes that no other turn has; ids and random numbers derive from them.

        Put together here, because few turns ask for any.
        """
        assert self.seed, "a turn has a seed"
        return self.seed + self.number.to_bytes(8, "big") if self.number else self.seed

    def new_uuid(self) -> str:
        """Return the turn's next id; the n-th call of a turn gives the same id in a re-run."""
        ordinal = self._ordinal
        assert ordinal >= 0, "ordinals count from zero"
        self._ordinal = ordinal + 1
        return derive_uuid(self.material(), ordinal)

    def new_id(self, prefix: str) -> str:
        """Return ``<prefix>-<uuid4>``."""
        return f"{prefix}-{self.new_uuid()}"


class Decision(msgspec.Struct, Generic[S], frozen=True, kw_only=True):
    """The outcome of one turn: the next state and what to do, in order.

    A struct because every turn makes one.
    """

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


class Scope(Protocol):
    """What a handler may reach while it runs in a task of its own."""

    @property
    def turn(self) -> Turn:
        """The turn this handler is part of."""
        ...

    def remaining_ms(self) -> int:
        """Return how long the handler may still run; never negative."""
        ...

    async def call(self, actor: ActorId, message: Message, *, key: str | None) -> Any:
        """Run a command of another actor along this chain.

        Raises:
            CycleError: The actor waits further up the chain, or the chain is too deep.
            DeadlineError: The chain's deadline passed.
        """
        ...

    async def query(self, actor: ActorId, message: Message) -> Any:
        """Ask another actor, or one further up the chain, along this chain."""
        ...

    async def kv_get(self, key: str) -> bytes | None:
        """Return a value of this actor's ordered map, once its earlier turns are durable."""
        ...

    async def kv_range(
        self, start: str, end: str, *, limit: int, descending: bool
    ) -> list[tuple[str, bytes]]:
        """Return pairs of this actor's ordered map, once its earlier turns are durable."""
        ...


class Extras(Protocol[S_contra]):
    """What a machine may offer beyond the pure contract; see ``extras_of``."""

    @property
    def concurrency_max(self) -> int:
        """How many of its handlers may run in tasks at once in this process; 0 for no bound."""
        ...

    def is_async(self, message: Message) -> bool:
        """Return whether ``message`` needs a task: `begin` instead of ``decide`` or `ask`.

        The same for all messages of one type.
        """
        ...

    def begin(self, state: S_contra, message: Message, scope: Scope) -> Coroutine[Any, Any, Any]:
        """Return the work of an async handler on a private copy of ``state``.

        A command's work returns the message that ``decide`` then gets in its place; a query's
        work returns the answer.
        """
        ...

    def ask(self, state: S_contra, query: Message, turn: Turn) -> Any:
        """Answer as ``query`` does, for machines that need to know whom they answer for."""
        ...

    @property
    def has_hooks(self) -> bool:
        """Whether `deactivated` has anything to do."""
        ...

    def deactivated(self, actor: ActorId, state: S_contra) -> None:
        """Hear that an actor left memory, for whatever reason; nothing done here is kept."""
        ...


def extras_of(machine: Machine[Any]) -> Extras[Any] | None:
    """Return what ``machine`` offers in its ``extras`` attribute; None without one."""
    extras: Extras[Any] | None = getattr(machine, "extras", None)
    return extras
