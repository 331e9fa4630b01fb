"""Methods of an actor class: what each accepts and returns, on the wire as in Python.

The arguments of a method become one tagged message type, made from its signature, so that a call
from Python, from HTTP and from the outbox is checked by the same types.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    overload,
)

import msgspec

from kelpie.actors.api.handle import CallHandle
from kelpie.actors.commands import Message
from kelpie.core.errors import DefinitionError, InvalidFieldError

if TYPE_CHECKING:
    from kelpie.actors.api.reference import Address

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Kind = Literal["command", "query", "reminder", "outcome"]

_SCALARS: Final = frozenset({bool, int, float, str, bytes})
RESERVED_NAMES: Final = frozenset({"reply_type"})  # a message has it already
_encode: Final = msgspec.msgpack.Encoder().encode


class Bound(Generic[P, R_co]):
    """A method of one actor, somewhere. Await its call, or hand it to ``ctx``."""

    __slots__ = ("method", "target")

    def __init__(self, target: Address, method: Method[P, R_co]) -> None:
        self.target = target
        self.method = method

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Call the method; the result arrives once it is durable.

        Raises (when awaited):
            OrderError: There is no runtime here, or the handler may not call any more.
            KelpieError: What the actor or the runtime refuses.
        """
        target = self.target
        return (target.caller or target.resolve()).invoke(target, self.method, args, kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, CallHandle[R_co]]:
        """Hand the call in: it is kept, and runs by itself, once, whatever becomes of the caller.

        Calls that one caller submits to one actor have their turns in the order of submission.

        Raises (when awaited):
            OrderError: The method is no command, or this is a handler: use ``ctx.send`` there.
            KelpieError: What the runtime refuses.
        """
        return self.target.resolve().submit(self.target, self.method, args, kwargs)

    def handle(self, call_id: str) -> CallHandle[R_co]:
        """Return the handle of a call of this method that was submitted before.

        Raises:
            OrderError: There is no runtime here, or this is a handler.
        """
        return CallHandle(call_id, self.method, self.target.resolve().desk())


class Method(Generic[P, R_co]):
    """A decorated function of an actor class.

    Attributes:
        kind: What may call it, and what it may do.
        handler: The function as written; a test may call it with a prepared actor.
        name: Its name on the wire.
        arguments: The message type of a call, made when the class is first used.
        payload: The same fields without a tag, as strangers send them.
        result: The annotated type of the result.
        is_query: Whether its kind is ``query``.
        is_open: Whether anybody may call it: a command or a query.
        constant: The one message of a method without arguments.
        fields: The names of the arguments.
    """

    def __init__(self, kind: Kind, handler: Callable[..., Any]) -> None:
        self.kind: Kind = kind
        self.handler = handler
        self.is_async = inspect.iscoroutinefunction(handler)
        self.is_query = kind == "query"
        self.is_open = kind in {"command", "query"}
        self.name = handler.__name__
        self.arguments: type[Message] = Message
        self.payload: type[msgspec.Struct] = msgspec.Struct
        self.result: Any = None
        self._positional = 0
        self.fields: tuple[str, ...] = ()
        self._scalars: tuple[type, ...] | None = None
        self.constant: Message | None = None
        self._decode: Callable[[bytes], Message] | None = None
        self._read_json: Callable[[bytes], msgspec.Struct] = msgspec.json.Decoder(
            self.payload
        ).decode
        self.__doc__ = handler.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Method[P, R_co]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> Bound[P, R_co]: ...
    def __get__(self, instance: Any, owner: type) -> Method[P, R_co] | Bound[P, R_co]:
        if instance is None:
            return self
        return Bound(instance.__target__, self)

    def prepare(self, owner: str) -> None:
        """Make the message type from the signature.

        Raises:
            DefinitionError: A parameter cannot travel in a message.
        """
        assert self._decode is None, "a method is prepared once"
        hints = self._hints(owner)
        self.result = hints.pop("return", Any)
        parameters = list(inspect.signature(self.handler).parameters.values())[1:]
        positional: list[Any] = []
        keyword: list[Any] = []
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                raise self._bad(owner, f"{parameter} cannot travel in a message; name each one")
            if parameter.name not in hints:
                raise self._bad(owner, f"parameter {parameter.name!r} has no annotation")
            if parameter.name in RESERVED_NAMES:
                raise self._bad(owner, f"parameter {parameter.name!r} must have another name")
            field: tuple[Any, ...] = (parameter.name, hints[parameter.name])
            if parameter.default is not parameter.empty:
                field = (*field, parameter.default)
            is_keyword = parameter.kind is parameter.KEYWORD_ONLY
            (keyword if is_keyword else positional).append(field)
        self._positional = len(positional)
        self.fields = tuple(field[0] for field in (*positional, *keyword))
        self.arguments = self._make_type(owner, positional, keyword)
        self.payload = msgspec.defstruct(
            f"{owner}.{self.name}",
            [*positional, *keyword],
            kw_only=True,
            forbid_unknown_fields=True,
        )
        assert self.payload.__struct_fields__ == self.fields, "in the order of the signature"
        self._read_json = msgspec.json.Decoder(self.payload).decode
        if not keyword and all(hints[name] in _SCALARS for name in self.fields):
            self._scalars = tuple(hints[name] for name in self.fields)
        self._decode = msgspec.msgpack.Decoder(self.arguments).decode
        assert self.arguments.__struct_fields__ == self.fields, "in the order of the signature"
        if not self.fields:
            self.constant = self.arguments()

    def _hints(self, owner: str) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.handler, include_extras=True)
        except NameError as error:
            problem = f"its annotations name what its module does not: {error}"
            raise self._bad(owner, problem) from error

    def _make_type(self, owner: str, positional: list[Any], keyword: list[Any]) -> type[Message]:
        namespace = {"reply_type": self.result, "__doc__": self.__doc__}
        name = f"{owner}.{self.name}"
        try:
            made = msgspec.defstruct(
                name, positional, bases=(Message,), frozen=True, tag=self.name, namespace=namespace
            )
            if keyword:
                made = msgspec.defstruct(
                    name, keyword, bases=(made,), frozen=True, tag=self.name, kw_only=True
                )
            msgspec.msgpack.Decoder(made)
        except (TypeError, ValueError) as error:
            raise self._bad(owner, f"its arguments cannot travel: {error}") from error
        assert issubclass(made, Message)
        return made

    def _bad(self, owner: str, problem: str) -> DefinitionError:
        return DefinitionError(f"{owner}.{self.name}: {problem}", actor=owner, method=self.name)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
        """Return the message of a call, checked and sharing nothing with the caller.

        Raises:
            InvalidFieldError: An argument is missing, unknown or of another type.
        """
        if self.constant is not None and not args and not kwargs:
            return self.constant
        decode = self._decode
        assert decode is not None, "a method is prepared before it is called"
        if self._scalars is not None and not kwargs and tuple(map(type, args)) == self._scalars:
            return self.arguments(*args)
        try:
            return decode(_encode(self.arguments(*args, **kwargs)))
        except (
            msgspec.ValidationError,
            OverflowError,
            UnicodeEncodeError,
            RecursionError,
        ) as error:
            raise InvalidFieldError(self.name, str(error)) from error
        except TypeError as error:
            problem = str(error).replace(self.arguments.__name__, self.name)
            raise InvalidFieldError(self.name, problem) from error

    def read_json(self, arguments: bytes) -> Message:
        """Return the message of a call whose arguments are a JSON object.

        Raises:
            InvalidFieldError: An argument is missing, unknown or of another type.
        """
        try:
            payload = self._read_json(arguments or b"{}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidFieldError(self.name, str(error)) from error
        values = msgspec.structs.astuple(payload)
        if self._positional == len(values):
            return self.arguments(*values)
        return self.arguments(**dict(zip(self.fields, values, strict=True)))

    def run(self, instance: Any, message: Message) -> Any:
        """Call the function with the message's arguments."""
        if not self.fields:
            return self.handler(instance)
        values = msgspec.structs.astuple(message)
        if self._positional == len(values):
            return self.handler(instance, *values)
        named = dict(zip(self.fields[self._positional :], values[self._positional :], strict=True))
        return self.handler(instance, *values[: self._positional], **named)


@overload
def command(handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Method[P, R]: ...
@overload
def command(handler: Callable[Concatenate[Any, P], R], /) -> Method[P, R]: ...
def command(handler: Callable[..., Any], /) -> Method[..., Any]:
    """Make a method that changes its actor: exclusive, all or nothing, durable before it answers.

    A ``def`` runs to its end at once; an ``async def`` may await, and keeps the actor meanwhile.
    """
    return Method("command", handler)


@overload
def query(handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Method[P, R]: ...
@overload
def query(handler: Callable[Concatenate[Any, P], R], /) -> Method[P, R]: ...
def query(handler: Callable[..., Any], /) -> Method[..., Any]:
    """Make a method that only reads: it may interleave with a command that waits.

    It sees the last finished turn's state, and its answer leaves once that state is durable. What
    it does to ``self.state`` is forgotten.
    """
    return Method("query", handler)


@overload
def reminder(handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Method[P, R]: ...
@overload
def reminder(handler: Callable[Concatenate[Any, P], R], /) -> Method[P, R]: ...
def reminder(handler: Callable[..., Any], /) -> Method[..., Any]:
    """Make a command that only time calls: see ``ctx.remind``."""
    return Method("reminder", handler)


@overload
def outcome(handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> Method[P, R]: ...
@overload
def outcome(handler: Callable[Concatenate[Any, P], R], /) -> Method[P, R]: ...
def outcome(handler: Callable[..., Any], /) -> Method[..., Any]:
    """Make a command that the end of an effect calls, with one `Settled`: see ``ctx.effect``."""
    return Method("outcome", handler)
