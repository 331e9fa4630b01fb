"""How a process calls hosted actor classes: from Python, or by name with JSON arguments.

The HTTP edge, the command line and the embedded runtime all enter here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from kelpie.actors.api.definition import Actor, Definition, definition_of
from kelpie.actors.api.handle import CallDesk, CallHandle, CallLook
from kelpie.actors.api.method import Kind, Method
from kelpie.actors.api.reference import Address
from kelpie.actors.calls import Calls
from kelpie.actors.commands import Message
from kelpie.actors.described import Described
from kelpie.actors.engine import Engine, Inspection
from kelpie.actors.hub import EventHub
from kelpie.actors.pauses import Pauses
from kelpie.actors.submissions import Submissions, SubmittedCall
from kelpie.core.errors import InvalidFieldError, NotFoundError, OrderError
from kelpie.core.ids import TENANT_DEFAULT, ActorId, Tenant
from kelpie.core.limits import (
    EVENT_PAGE_ROWS_MAX,
    INVOCATION_TIMEOUT_MS,
    INVOCATION_TIMEOUT_MS_MAX,
)
from kelpie.storage.protocol import Store
from kelpie.storage.records import DeadLetter

A = TypeVar("A", bound=Actor[Any])
T = TypeVar("T")

NAME_CHARS_MAX = 200  # of a name that a stranger gave, in an error
NAMES_SHOWN_MAX = 20  # of what exists, to one who asked for what does not
FOLLOW_LOOK_S = 5.0  # a hint may be lost; a look at the store is cheap


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """One method as a stranger needs it: JSON schemas of its arguments and its result."""

    name: str
    kind: Kind
    doc: str
    arguments: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeInfo:
    """One hosted actor class."""

    name: str
    doc: str
    schema_version: int
    methods: tuple[MethodInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of an actor's log; ``sequence`` is the cursor, from 1, without gaps."""

    sequence: int
    at_ms: int
    kind: str
    body: bytes

    def read(self, kind: type[T]) -> T:
        """Return the body as ``kind``.

        Raises:
            InvalidFieldError: It is of another type.
        """
        try:
            return msgspec.msgpack.decode(self.body, type=kind)
        except msgspec.ValidationError as error:
            raise InvalidFieldError(f"event {self.kind}", str(error)) from error


class Gateway:
    """The actor classes of one process, to call, watch and care for."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
        hub: EventHub,
        wake_outbox: Callable[[], None],
        calls: Submissions,
        pauses: Pauses,
        kinds: Sequence[type[Actor[Any]]],
        runtime: Calls | None = None,
        principal: str = "local",
        tenant: Tenant = TENANT_DEFAULT,
    ) -> None:
        self.engine = engine
        self._runtime: Calls = runtime or engine
        self._store = store
        self._hub = hub
        self._wake_outbox = wake_outbox
        self._calls = calls
        self._pauses = pauses
        self._principal = principal
        self._tenant = tenant
        definitions = [definition_of(kind) for kind in kinds]
        self._definitions = {each.type_name: each for each in definitions}
        assert len(self._definitions) == len(definitions), "two classes share a type name"

    # --- calls ----------------------------------------------------------------------------------

    def ref(
        self,
        kind: type[A],
        key: str,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> A:
        """Return a typed reference: ``await runtime.ref(Counter, "a").add(1)``.

        Args:
            kind: The actor's class.
            key: Which actor; it is created by being called.
            idempotency_key: Makes one call of each method through this reference happen once.
            timeout_s: How long a call may take.
        """
        target = Address(
            kind.type_name(),
            key,
            tenant=self._tenant,
            caller=self,
            idempotency_key=idempotency_key,
            timeout_ms=None if timeout_s is None else max(1, int(timeout_s * 1000)),
        )
        return kind.at(target)

    async def invoke(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a method for a reference; see `Caller`."""
        actor = target.known
        if actor is None or actor.tenant != self._tenant:
            actor = target.actor(self._tenant)
        message = method.constant
        if message is None or args or kwargs:
            message = method.pack(args, kwargs)
        timeout_ms = target.timeout_ms or INVOCATION_TIMEOUT_MS
        key = target.idempotency_key
        if key is not None or not method.is_open:
            return await self._call(
                actor, method, message, key=key, timeout_ms=timeout_ms, principal=self._principal
            )
        runtime = self._runtime
        envelope = runtime.begin(
            actor, message, self._principal, timeout_ms, is_query=method.is_query
        )
        may_go_on = runtime.may_go_on  # looked up as a value, which an engine's is
        if envelope.error is None and may_go_on(envelope):
            return envelope.value
        return await runtime.answer(envelope, timeout_ms)

    async def call(
        self,
        actor: ActorId,
        method: str,
        arguments: bytes,
        *,
        principal: str,
        key: str | None = None,
        timeout_ms: int = INVOCATION_TIMEOUT_MS,
    ) -> bytes:
        """Call a method by name with a JSON object of arguments; return its result as JSON.

        Raises:
            NotFoundError: No such type, or no such command or query.
            InvalidFieldError: The arguments do not fit the method, or the deadline is no deadline.
            KelpieError: As the engine's ``call`` and ``query``.
        """
        found = self.method(actor.type, method)
        if not 1 <= timeout_ms <= INVOCATION_TIMEOUT_MS_MAX:
            bound = INVOCATION_TIMEOUT_MS_MAX
            raise InvalidFieldError("timeout_ms", f"must be 1 to {bound:,}")
        message = found.read_json(arguments)
        value = await self._call(
            actor, found, message, key=key, timeout_ms=timeout_ms, principal=principal
        )
        return msgspec.json.encode(value)

    async def _call(
        self,
        actor: ActorId,
        method: Method[Any, Any],
        message: Message,
        *,
        key: str | None,
        timeout_ms: int,
        principal: str,
    ) -> Any:
        if method.kind == "query":
            return await self._runtime.query(actor, message, timeout_ms=timeout_ms)
        if method.kind != "command":
            hint = f"it is marked @{method.kind}, and only the runtime calls it"
            raise NotFoundError("method", method.name, hint=hint)
        return await self._runtime.call(
            actor, message, principal=principal, key=key, timeout_ms=timeout_ms
        )

    def method(self, type_name: str, name: str) -> Method[Any, Any]:
        """Return a command or a query of a hosted class.

        Raises:
            NotFoundError: There is none; the error names those that there are.
        """
        definition = self._definitions.get(type_name)
        if definition is None:
            hint = f"hosted here: {', '.join(sorted(self._definitions)[:NAMES_SHOWN_MAX])}"
            raise NotFoundError("actor type", type_name[:NAME_CHARS_MAX], hint=hint)
        method = definition.methods.get(name)
        if method is None or method.kind not in {"command", "query"}:
            methods = definition.methods.values()
            open_to_calls = sorted(m.name for m in methods if m.kind in {"command", "query"})
            hint = f"{type_name} has {', '.join(open_to_calls[:NAMES_SHOWN_MAX])}"
            raise NotFoundError("method", f"{type_name}.{name[:NAME_CHARS_MAX]}", hint=hint)
        return method

    # --- submitted calls ------------------------------------------------------------------------

    async def submit(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> CallHandle[Any]:
        """Keep a call for a reference; see `Caller`.

        Raises:
            OrderError: The method is no command.
            KelpieError: As `Submissions.submit`.
        """
        if method.kind != "command":
            raise OrderError(f"only commands can be submitted, {method.name} is none")
        actor = target.actor(self._tenant)
        self.method(actor.type, method.name)
        call = await self._calls.submit(
            actor,
            method.pack(args, kwargs),
            principal=self._principal,
            key=target.idempotency_key,
        )
        return CallHandle(call.stored.call_id, method, self)

    def desk(self) -> CallDesk:
        """Return this: the submitted calls of the tenant are asked about here."""
        return self

    async def look(self, call_id: str, method: Method[Any, Any], *, wait_s: float) -> CallLook:
        """Return a call as it is once it ended, or after ``wait_s``; see `CallDesk`.

        Raises:
            InvalidFieldError: The call is one of another method, whose result has another type.
        """
        call = await self._calls.wait(self._tenant, call_id, wait_s)
        if call.stored.method != method.name:
            raise InvalidFieldError("call", f"{call_id} is a call of {call.stored.method}")
        return look_at(call, method.result)

    async def cancel(self, call_id: str) -> None:
        """Take a call back that has not begun; see `CallDesk`."""
        await self._calls.cancel(self._tenant, call_id)

    @property
    def submissions(self) -> Submissions:
        """The submitted calls of this process's store, by id."""
        return self._calls

    async def submit_named(
        self, actor: ActorId, method: str, arguments: bytes, *, principal: str, key: str | None
    ) -> SubmittedCall:
        """Keep a call by name with a JSON object of arguments.

        Raises:
            NotFoundError: No such type, or no such command.
            InvalidFieldError: The arguments do not fit the method.
            KelpieError: As `Submissions.submit`.
        """
        found = self.method(actor.type, method)
        if found.kind != "command":
            raise NotFoundError("command", f"{actor.type}.{method}", hint="it is a query; call it")
        message = found.read_json(arguments)
        return await self._calls.submit(actor, message, principal=principal, key=key)

    def result_json(self, call: SubmittedCall) -> bytes:
        """Return what a completed call came to as JSON, by its method's type if that is hosted."""
        assert call.status == "completed", "only a completed call has a result"
        definition = self._definitions.get(call.stored.actor.type)
        method = definition.methods.get(call.stored.method) if definition else None
        kind = Any if method is None else method.result
        return msgspec.json.encode(look_at(call, kind).value)

    # --- what there is --------------------------------------------------------------------------

    def types(self) -> tuple[TypeInfo, ...]:
        """Return the hosted classes with the schemas of their commands and queries, by name."""
        return tuple(_type_info(self._definitions[name]) for name in sorted(self._definitions))

    async def events(self, actor: ActorId | Actor[Any], *, after: int, limit: int) -> list[Event]:
        """Return up to ``limit`` events with a sequence above ``after``, in order, without gaps.

        Raises:
            CursorAheadError: ``after`` is beyond the newest event.
            CursorExpiredError: The events after it were removed.
        """
        rows = await self._store.events(self.actor_of(actor), after, limit)
        return [
            Event(sequence=row.sequence, at_ms=row.at_ms, kind=row.kind, body=row.body)
            for row in rows
        ]

    async def follow(self, actor: ActorId | Actor[Any], *, after: int = 0) -> AsyncGenerator[Event]:
        """Yield the actor's events above ``after`` as they become durable, without end.

        Raises:
            CursorAheadError: ``after`` is beyond the newest event.
            CursorExpiredError: The events after it were removed.
        """
        name = self.actor_of(actor)
        with self._hub.watch(name) as watch:
            while True:
                page = await self.events(name, after=after, limit=EVENT_PAGE_ROWS_MAX)
                for event in page:
                    after = event.sequence
                    yield event
                if not page:
                    await watch.wait(FOLLOW_LOOK_S)

    # --- care -----------------------------------------------------------------------------------

    def actor_of(self, actor: ActorId | Actor[Any]) -> ActorId:
        """Return the id behind a reference, or the id itself."""
        return actor.__target__.actor(self._tenant) if isinstance(actor, Actor) else actor

    def inspect(self, actor: ActorId | Actor[Any]) -> Inspection:
        """Return the actor as this process, its owner, has it.

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        return self.engine.inspect(self._owned(actor))

    async def paused_among(self, actors: Sequence[ActorId]) -> frozenset[ActorId]:
        """Return those of the actors that are paused: what its owner knows, or the store."""
        engine = self.engine
        if all(engine.ownership.serves(actor.shard) for actor in actors):
            return frozenset(actor for actor in actors if engine.is_paused(actor))
        stored = {pause.actor for pause in await self._store.pauses()}
        return frozenset(actor for actor in actors if actor in stored)

    def _owned(self, actor: ActorId | Actor[Any]) -> ActorId:
        """Return the id, of an actor of this node.

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        name = self.actor_of(actor)
        if not self.engine.ownership.serves(name.shard):
            raise self.engine.ownership.refusal(name.shard)
        return name

    async def pause(self, actor: ActorId | Actor[Any], *, principal: str = "") -> None:
        """Let the actor's commands wait until `resume`, across restarts; it is audited.

        Raises:
            NotFoundError: Its type is not hosted here.
            StoreError: The pause could not be kept, and does not hold.
        """
        await self._pauses.pause(self.actor_of(actor), principal=principal or self._principal)

    async def resume(self, actor: ActorId | Actor[Any], *, principal: str = "") -> None:
        """Give the waiting commands their turns; it is audited.

        Raises:
            StoreError: The end of the pause could not be kept, and it holds.
        """
        await self._pauses.resume(self.actor_of(actor), principal=principal or self._principal)

    def kill(self, actor: ActorId | Actor[Any]) -> bool:
        """Stop the actor's handler and load it anew at its next call; was it in memory?

        Raises:
            NotOwnerError: Its shard is not served here.
        """
        return self.engine.kill(self._owned(actor))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Return the newest messages that failed too often, with the last failure's traceback."""
        return await self._store.dead_letters(self._tenant, limit)

    async def replay(self, message_id: int) -> None:
        """Give a dead letter all its attempts again, as the newest message of its lane.

        Raises:
            NotFoundError: The tenant has no such dead letter.
        """
        await self._store.replay_dead_letter(self._tenant, message_id)
        self._wake_outbox()


def look_at(call: SubmittedCall, result_type: Any) -> CallLook:
    """Return what a call came to: its result as ``result_type``, or its error."""
    body = call.stored.body
    match call.status:
        case "completed":
            try:
                return CallLook(call.status, msgspec.msgpack.decode(body, type=result_type))
            except msgspec.ValidationError as error:
                problem = f"{call.stored.method} had another type then: {error}"
                raise InvalidFieldError("result", problem) from error
        case "failed" | "dead":
            described = msgspec.msgpack.decode(body, type=Described)
            return CallLook(call.status, error=described.restore())
        case _:
            return CallLook(call.status)


def _type_info(definition: Definition) -> TypeInfo:
    return TypeInfo(
        name=definition.type_name,
        doc=(definition.kind.__doc__ or "").strip(),
        schema_version=definition.codec.version,
        methods=tuple(
            _method_info(method)
            for _, method in sorted(definition.methods.items())
            if method.kind in {"command", "query"}
        ),
    )


def _method_info(method: Method[Any, Any]) -> MethodInfo:
    return MethodInfo(
        name=method.name,
        kind=method.kind,
        doc=(method.__doc__ or "").strip(),
        arguments=msgspec.json.schema(method.payload),
        result=msgspec.json.schema(method.result),
    )
