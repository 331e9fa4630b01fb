"""Hosts an actor class as a machine: the state between turns is its encoding, nothing else.

A turn decodes a copy, runs the method on it, and encodes what it left. So a turn that fails leaves
nothing to undo, a query cannot change anything, and an idle actor costs its bytes.

Invariants: equal encodings are no change and are not written; a method runs only as its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from kelpie.actors.api.context import REF_SEPARATOR, Context
from kelpie.actors.api.definition import Actor, Definition, definition_of
from kelpie.actors.api.method import Method
from kelpie.actors.api.reference import Address, current_caller
from kelpie.actors.api.settled import EffectPort
from kelpie.actors.commands import Command, Message, Reply
from kelpie.actors.machine import Decision, Scope, Turn
from kelpie.core.errors import InvalidFieldError
from kelpie.core.ids import ActorId
from kelpie.storage.records import StoredActor


class Kept:
    """The state of an actor whose class has hooks: its encoding, and what `on_activate` made."""

    __slots__ = ("encoded", "shared")

    def __init__(self, encoded: bytes, shared: dict[str, Any]) -> None:
        self.encoded = encoded
        self.shared = shared


Held = bytes | Kept

_PLAIN: Final = frozenset({bool, int, float, bytes})  # results that travel whatever they are


class HandlerEnded(Message, frozen=True, tag="kelpie.handler_ended"):
    """What an async handler came to; never stored."""

    encoded: bytes
    commands: tuple[Command, ...]
    value: Any


class ActorMachine:
    """An actor class as the engine hosts it. Implements `Machine` and `Extras`."""

    def __init__(self, kind: type[Actor[Any]], effects: EffectPort | None = None) -> None:
        self.definition: Definition = definition_of(kind)
        self._effects = effects
        self._codec = self.definition.codec
        self._initial = self._codec.encode(self._codec.state_type())
        self._encode = self._codec.encode
        self._decode = self._codec.decode
        self._new: Callable[[], Actor[Any]] = partial(kind.__new__, kind)
        self._by_message = self.definition.by_message

    @property
    def extras(self) -> ActorMachine:
        """What this machine offers beyond the pure contract."""
        return self

    @property
    def type_name(self) -> str:
        """The class's type name."""
        return self.definition.type_name

    @property
    def schema_version(self) -> int:
        """The state's version."""
        return self._codec.version

    @property
    def message_type(self) -> Any:
        """The union of the methods' messages."""
        return self.definition.message_type

    @property
    def concurrency_max(self) -> int:
        """How many async handlers of this type run at once; 0 for no bound."""
        return self.definition.kind.concurrency_max

    # --- state ----------------------------------------------------------------------------------

    def create(self, actor: ActorId) -> Held:
        """Return the state of an actor that does not exist."""
        return self._hold(actor, self._initial)

    def load(self, stored: StoredActor) -> Held:
        """Return a stored state, carried forward to the present version.

        Raises:
            StoreVersionError: It cannot be carried forward.
        """
        return self._hold(stored.actor, self._codec.load(stored))

    def dump(self, state: Held) -> bytes:
        """Return the encoding."""
        return state if isinstance(state, bytes) else state.encoded

    def _hold(self, actor: ActorId, encoded: bytes) -> Held:
        if not self.definition.has_hooks:
            return encoded
        instance = self._outside_turns(actor, encoded)
        instance.on_activate()
        shared = dict(vars(instance))
        for name in ("state", "ctx", "__target__"):
            shared.pop(name, None)
        return Kept(encoded, shared)

    @property
    def has_hooks(self) -> bool:
        """Whether the class has `on_activate` or `on_deactivate`."""
        return self.definition.has_hooks

    def deactivated(self, actor: ActorId, state: Held) -> None:
        """Run the class's hook."""
        if isinstance(state, Kept):
            self._outside_turns(actor, state).on_deactivate()

    def _outside_turns(self, actor: ActorId, state: Held) -> Actor[Any]:
        """Return an instance for a hook: it has a name, and no context."""
        instance = self._instance(state)
        instance.__target__ = Address(self.definition.type_name, actor.key, tenant=actor.tenant)
        return instance

    def _instance(self, state: Held) -> Actor[Any]:
        """Return an instance with a copy of the state that is this turn's own."""
        instance = self._new()
        if isinstance(state, bytes):
            instance.state = self._decode(state)
        else:
            vars(instance).update(state.shared)
            instance.state = self._decode(state.encoded)
        return instance

    # --- turns ----------------------------------------------------------------------------------

    def decide(self, state: Held, message: Message, turn: Turn) -> Decision[Held]:
        """Run a method to its end, or take what an async one came to.

        Raises:
            InvalidFieldError: The message is a query.
            KelpieError: What the method raised on purpose.
        """
        method = self._by_message.get(type(message))
        if method is None or method.is_query:
            if isinstance(message, HandlerEnded):
                return self._decision(state, message.encoded, message.commands, message.value)
            method, message = self._route(message)
            if method is None:
                return Decision(state=state)
        context = Context(turn, "command", self._effects)
        if type(state) is bytes:  # `_instance`, in place
            instance = self._new()
            instance.state = self._decode(state)
        else:
            instance = self._instance(state)
        instance.ctx = context
        value = method.run(instance, message) if method.fields else method.handler(instance)
        encoded = self._encode(instance.state)
        if value is not None and encoded == state and not context.has_asked:
            return Decision(state=state, commands=(Reply(value=value),))
        self._require_loadable(encoded, state, method)
        return self._decision(state, encoded, context.commands, value)

    def _require_loadable(self, encoded: bytes, state: Held, method: Method[Any, Any]) -> None:
        """Return if what a command left in its state is what it found, or can be loaded again.

        Raises:
            TypeError: It cannot: fields are not checked when they are set.
        """
        if encoded != self.dump(state):
            self._codec.require_loadable(encoded, method.name)

    def _decision(
        self, state: Held, encoded: bytes, commands: tuple[Command, ...], value: Any
    ) -> Decision[Held]:
        if value is not None:
            if type(value) not in _PLAIN:
                self._encode(value)  # what cannot travel must not be kept either
            commands = (*commands, Reply(value=value))
        before = self.dump(state)
        if encoded == before:
            # The same object says that nothing changed: no comparison, no commit.
            return Decision(state=state, commands=commands)
        if isinstance(state, bytes):
            return Decision(state=encoded, commands=commands)
        return Decision(state=Kept(encoded, state.shared), commands=commands)

    def query(self, state: Held, query: Message) -> Any:
        """Refuse: a query needs to know its turn, see `ask`."""
        del state
        raise InvalidFieldError("query", f"{type(query).__name__} is asked through the extras")

    def ask(self, state: Held, query: Message, turn: Turn) -> Any:
        """Run a query on a copy of the state.

        Raises:
            InvalidFieldError: The message is no query.
        """
        method = self._query_method(query)
        instance = self._instance(state)
        instance.ctx = Context(turn, "query")
        return method.run(instance, query) if method.fields else method.handler(instance)

    def _query_method(self, message: Message) -> Method[Any, Any]:
        method = self._by_message.get(type(message))
        if method is None or method.kind != "query":
            raise InvalidFieldError("query", f"{type(message).__name__} is no query")
        return method

    def _route(self, message: Message) -> tuple[Method[Any, Any] | None, Message]:
        """Return the method and the message of an effect's end; no method to ignore it.

        Raises:
            InvalidFieldError: The message is a query, or its method is gone.
        """
        found = self._by_message.get(type(message))
        if found is not None:
            raise InvalidFieldError("command", f"{found.name} is a query")
        assert self._effects is not None, f"{type(message).__name__} came without a spine"
        settled = self._effects.read(message)
        if settled is None:
            return None, message
        name, _, ref = settled.ref.partition(REF_SEPARATOR)
        method = self.definition.methods.get(name)
        if method is None:
            raise InvalidFieldError("outcome", f"{self.type_name} has no method {name!r} any more")
        own = type(settled)(
            ref=ref, status=settled.status, result=settled.result, error=settled.error
        )
        return method, method.pack((own,), {})

    # --- async handlers -------------------------------------------------------------------------

    def is_async(self, message: Message) -> bool:
        """Return whether the message is for an ``async def``."""
        method = self._by_message.get(type(message))
        return method is not None and method.is_async

    def begin(self, state: Held, message: Message, scope: Scope) -> Coroutine[Any, Any, Any]:
        """Return the run of an ``async def`` on a copy of the state."""
        method = self._by_message[type(message)]
        if method.kind == "query":
            return self._run_query(method, state, message, scope)
        return self._run_command(method, state, message, scope)

    async def _run_query(
        self, method: Method[Any, Any], state: Held, message: Message, scope: Scope
    ) -> Any:
        context = Context(scope.turn, "query")
        context.enter(scope)
        instance = self._instance(state)
        instance.ctx = context
        current_caller.set(context)
        return await method.run(instance, message)

    async def _run_command(
        self, method: Method[Any, Any], state: Held, message: Message, scope: Scope
    ) -> Message:
        instance = self._instance(state)
        before = self.dump(state)
        context = Context(scope.turn, "command", self._effects)
        context.enter(scope, lambda: self._encode(instance.state) != before)
        instance.ctx = context
        current_caller.set(context)
        value = await method.run(instance, message)
        encoded = self._encode(instance.state)
        self._require_loadable(encoded, state, method)
        return HandlerEnded(encoded, context.commands, value)
