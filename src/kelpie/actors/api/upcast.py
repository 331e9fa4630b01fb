"""Typed state with a version, and the functions that carry an older state forward.

Invariants: a state of an unknown version is never decoded; a missing step is named; no field of a
stored state is dropped in silence; what is stored can be loaded again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, Generic, TypeVar

import msgspec

from kelpie.core.errors import DefinitionError, StoreVersionError
from kelpie.ports.faults import fault
from kelpie.storage.records import StoredActor

Fields = dict[str, Any]


class State(msgspec.Struct, forbid_unknown_fields=True):
    """Base of an actor's state: fields with defaults, and the version of their layout.

    A stored field that the class no longer has is refused: a renamed one would start again from its
    default, and the next turn would write that over what was stored.
    """

    schema_version: ClassVar[int] = 1


S = TypeVar("S", bound=State)


class Upcaster:
    """A function from the fields at ``from_version`` to the fields one version later."""

    __slots__ = ("from_version", "function")

    def __init__(self, from_version: int, function: Callable[[Fields], Fields]) -> None:
        self.from_version = from_version
        self.function = function


def upcast(*, from_version: int) -> Callable[[Callable[[Fields], Fields]], Upcaster]:
    """Mark a static method of a `State` as the step from ``from_version`` to the next one."""
    if from_version < 1:
        raise DefinitionError(f"upcast from version {from_version}: versions count from 1")

    def mark(function: Callable[[Fields], Fields]) -> Upcaster:
        return Upcaster(from_version, function)

    return mark


class StateCodec(Generic[S]):
    """Encodes one state type, and decodes it at any version that it has steps for."""

    def __init__(self, owner: str, state_type: type[S]) -> None:
        self.owner = owner
        self.state_type = state_type
        self.version = state_type.schema_version
        members = [each for kind in state_type.__mro__ for each in vars(kind).values()]
        steps = [each for each in members if isinstance(each, Upcaster)]
        self._steps: Final = {step.from_version: step.function for step in steps}
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(state_type).decode
        self._require_sound()

    def _require_sound(self) -> None:
        if self.version < 1:
            raise DefinitionError(f"{self.owner}: schema_version must be 1 or more")
        beyond = [version for version in self._steps if version >= self.version]
        if beyond:
            problem = f"upcasts from version {beyond[0]}, and schema_version is {self.version}"
            raise DefinitionError(f"{self.owner}: {problem}")
        try:
            self.state_type()
        except TypeError as error:
            problem = f"every field of {self.state_type.__name__} needs a default: {error}"
            raise DefinitionError(f"{self.owner}: {problem}") from error

    def load(self, stored: StoredActor) -> bytes:
        """Return a stored state, encoded at the present version.

        Raises:
            StoreVersionError: A step is missing, the state is newer than this program, or it does
                not fit the type; the error names the actor and the step.
        """
        version = stored.schema_version
        try:
            if version == self.version:
                self.decode(stored.state)
                return stored.state
            fields = msgspec.msgpack.decode(stored.state)
            while version < self.version:
                step = self._steps.get(version)
                if step is None:
                    raise self._refuse(stored, f"no @upcast(from_version={version}) leads on")
                if fault("migration.upcast_fail"):
                    raise self._refuse(stored, f"@upcast(from_version={version}) failed")
                fields = step(fields)
                version += 1
            if version > self.version:
                raise self._refuse(stored, f"this program knows versions up to {self.version}")
            return self.encode(msgspec.convert(fields, self.state_type))
        except msgspec.ValidationError as error:
            problem = f"it does not fit {self.state_type.__name__} ({error})"
            advice = "raise schema_version and add the step, or correct it"
            raise self._refuse(stored, f"{problem}; {advice}") from error

    def require_loadable(self, encoded: bytes, method: str) -> None:
        """Check what a turn of ``method`` left; a struct does not check what is assigned to it.

        Raises:
            TypeError: A field has a value that is not of its type; it could not be loaded again.
        """
        try:
            self.decode(encoded)
        except msgspec.ValidationError as error:
            name = self.state_type.__name__
            problem = f"{self.owner}.{method} left a state that does not fit {name}: {error}"
            raise TypeError(problem) from error

    def _refuse(self, stored: StoredActor, problem: str) -> StoreVersionError:
        return StoreVersionError(
            f"{stored.actor} is stored at version {stored.schema_version}: {problem}",
            actor=str(stored.actor),
            version=stored.schema_version,
        )
