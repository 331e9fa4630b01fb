"""Actor classes: typed state, marked methods, hooks; and the definition read from one.

Invariants: a class that cannot be hosted as written is refused when it is first used, by name.
"""

from __future__ import annotations

import typing
from typing import Any, ClassVar, Generic, Self, TypeVar, Union

from kelpie.actors.api.context import Context
from kelpie.actors.api.method import Method
from kelpie.actors.api.reference import Address
from kelpie.actors.api.settled import Settled
from kelpie.actors.api.upcast import State, StateCodec
from kelpie.actors.callers import RESERVED_PREFIX
from kelpie.actors.commands import Message
from kelpie.core.errors import DefinitionError, OrderError

S = TypeVar("S", bound=State)


class Actor(Generic[S]):
    """Base of every actor class: ``class Counter(Actor[Tally])``.

    An instance lives for one turn. ``self.state`` is that turn's own copy: what a command leaves in
    it is stored when the command ends, what a query does to it is forgotten. What `on_activate`
    puts on ``self`` is there in every turn until the actor leaves memory. A reference is an
    instance as well, without state: its methods run where the actor lives.

    Attributes:
        actor_type: The type segment of ids; the class's name unless set.
        concurrency_max: How many async handlers of this type run at once in a process; 0 for no
            bound.
    """

    actor_type: ClassVar[str] = ""
    concurrency_max: ClassVar[int] = 0

    __target__: Address
    state: S
    ctx: Context

    def on_activate(self) -> None:
        """Prepare what turns share, after the state was loaded. Nothing done here is stored.

        If it raises, the calls that wait fail with `ActorFailedError`; the next one tries again.
        """

    def on_deactivate(self) -> None:
        """Let go of what `on_activate` prepared. Nothing done here is stored.

        Called once for each activation that leaves memory: evicted, discarded after a failure,
        killed, deleted, or at the end of the process's drain; not when the process is killed. If it
        raises, that is reported, and the actor leaves all the same.
        """

    @classmethod
    def type_name(cls) -> str:
        """Return the type segment of these actors' ids."""
        return cls.actor_type or cls.__name__

    @classmethod
    def at(cls, target: Address) -> Self:
        """Return a reference: an instance without state whose methods run at ``target``."""
        definition_of(cls)
        instance = cls.__new__(cls)
        instance.__target__ = target
        return instance

    if not typing.TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "__target__" and "ctx" in vars(self):
                # Few turns call a method of their own actor, so it is made when one does.
                actor = self.ctx.actor
                self.__target__ = Address(actor.type, actor.key, tenant=actor.tenant)
                return self.__target__
            if name in {"state", "ctx"}:
                raise OrderError(
                    f"{type(self).__name__}.{name} exists only in the actor's own turn; "
                    "call one of its methods"
                )
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class Definition:
    """What is known of one actor class.

    Attributes:
        methods: Its marked methods, by name.
        message_type: The union of their message types.
        has_hooks: Whether instances share something between turns.
    """

    def __init__(self, kind: type[Actor[Any]]) -> None:
        self.kind = kind
        self.type_name = kind.type_name()
        self.codec: StateCodec[Any] = StateCodec(self.type_name, _state_type(kind))
        self.methods = _methods_of(kind)
        if not self.methods:
            raise DefinitionError(f"{self.type_name} has no @command or @query")
        if self.type_name.startswith(RESERVED_PREFIX):
            raise DefinitionError(f"{self.type_name}: names with {RESERVED_PREFIX!r} are Kelpie's")
        if kind.__init__ is not object.__init__:
            raise DefinitionError(f"{self.type_name}.__init__ is never called; use on_activate")
        for method in self.methods.values():
            if method.arguments is Message:
                method.prepare(self.type_name)
            _require_outcome_shape(self.type_name, method)
        self.by_message = {method.arguments: method for method in self.methods.values()}
        self.message_type: Any = Union[tuple(self.by_message)]  # noqa: UP007  made at run time
        self.has_hooks = any(
            name in vars(base)
            for base in kind.__mro__[: kind.__mro__.index(Actor)]
            for name in ("on_activate", "on_deactivate")
        )
        self.has_outcomes = any(each.kind == "outcome" for each in self.methods.values())


def definition_of(kind: type[Actor[Any]]) -> Definition:
    """Return the definition of an actor class, read at the first use.

    Raises:
        DefinitionError: The class cannot be hosted as it is written.
    """
    known = vars(kind).get("__definition__")
    if isinstance(known, Definition):
        return known
    made = Definition(kind)
    type.__setattr__(kind, "__definition__", made)
    return made


def _methods_of(kind: type[Actor[Any]]) -> dict[str, Method[Any, Any]]:
    found: dict[str, Method[Any, Any]] = {}
    for base in reversed(kind.__mro__):
        for name, member in vars(base).items():
            if isinstance(member, Method):
                found[name] = member
            else:
                found.pop(name, None)
    return found


def _state_type(kind: type[Actor[Any]]) -> type[State]:
    for base in kind.__mro__:
        for generic in vars(base).get("__orig_bases__", ()):
            arguments = typing.get_args(generic)
            if not arguments or not isinstance(arguments[0], type):
                continue
            if issubclass(arguments[0], State):
                return arguments[0]
    raise DefinitionError(f"{kind.__name__} must name its state: class {kind.__name__}(Actor[...])")


def _require_outcome_shape(owner: str, method: Method[Any, Any]) -> None:
    if method.kind != "outcome":
        return
    hints = [each for each in method.arguments.__annotations__.values() if each is Settled]
    if len(hints) != 1 or len(method.arguments.__struct_fields__) != 1:
        raise DefinitionError(f"{owner}.{method.name}: an @outcome takes exactly one Settled")
