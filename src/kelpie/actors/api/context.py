"""What a handler may do: read the turn's world, and ask for what its commit will carry.

Nothing here acts: each request becomes a command of the turn, and all of a turn's commands become
durable with its state, or none.

Invariants: a query asks for nothing; nothing of another actor is awaited after this turn's first
change or request, so that a re-run repeats nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import msgspec

from kelpie.actors import commands as c
from kelpie.actors.api.kv import Kv
from kelpie.actors.api.method import Bound, Kind, Method
from kelpie.actors.api.reference import Address
from kelpie.actors.api.settled import EffectPort, EffectWish, Settled
from kelpie.actors.api.turn_rng import TurnRng
from kelpie.actors.machine import Scope, Turn
from kelpie.core import limits
from kelpie.core.errors import InvalidFieldError, OrderError
from kelpie.core.ids import ActorId, derive_uuid

P = ParamSpec("P")
R = TypeVar("R")

REF_SEPARATOR: Final = ":"
KEY_MATERIAL: Final = b"kelpie.turn.key"


class Context(msgspec.Struct, eq=False):
    """The world and the wishes of one turn. A struct, because every turn makes one."""

    _turn: Turn
    _kind: Kind
    _effects: EffectPort | None = None
    _scope: Scope | None = None
    _is_changed: Callable[[], bool] | None = None
    has_asked: bool = False
    _commands: list[c.Command] | None = None
    _ordinal: int = 0
    _rng: TurnRng | None = None
    _kv: Kv | None = None

    def enter(self, scope: Scope, is_changed: Callable[[], bool] | None = None) -> None:
        """Let an async handler call others; a command's as long as ``is_changed`` says no."""
        assert self._scope is None, "a context is entered once"
        self._scope = scope
        self._is_changed = is_changed
        assert self._kind == "query" or is_changed is not None, "a command knows whether it changed"

    # --- the world ------------------------------------------------------------------------------

    @property
    def actor(self) -> ActorId:
        """Whose turn it is."""
        return self._turn.actor

    @property
    def key(self) -> str:
        """The actor's key within its type."""
        return self._turn.actor.key

    @property
    def principal(self) -> str:
        """Who caused the turn: ``actor:<id>``, ``system:reminder`` or a caller's identity."""
        return self._turn.principal

    @property
    def now_ms(self) -> int:
        """Wall time at the turn's start, in milliseconds since 1970 UTC."""
        return self._turn.now_ms

    @property
    def now(self) -> datetime:
        """Wall time at the turn's start, in UTC."""
        return datetime.fromtimestamp(self._turn.now_ms / 1000, tz=UTC)

    @property
    def idempotency_key(self) -> str:
        """A name of this request that is the same in every attempt at it; for systems outside."""
        turn = self._turn
        cause = f"{turn.actor}\n{turn.request_id}".encode() if turn.request_id else turn.material()
        return derive_uuid(KEY_MATERIAL + cause[-limits.ACTOR_ID_BYTES_MAX * 2 :], 0)

    @property
    def rng(self) -> TurnRng:
        """Randomness that a re-run of the turn repeats."""
        assert self._turn.seed, "a turn has a seed"
        if self._rng is None:
            self._rng = TurnRng(self._turn)
        assert isinstance(self._rng, TurnRng)
        return self._rng

    @property
    def kv(self) -> Kv:
        """The actor's own ordered map."""
        if self._kv is None:
            self._kv = Kv(self.actor, self._ask, self._scope)
        assert self._kv is not None
        return self._kv

    @property
    def remaining_ms(self) -> int:
        """How long this handler may still run; a ``def`` handler has no deadline of its own."""
        return self._scope.remaining_ms() if self._scope else limits.INVOCATION_TIMEOUT_MS

    @property
    def commands(self) -> tuple[c.Command, ...]:
        """What the turn has asked for so far."""
        return tuple(self._commands) if self._commands else ()

    # --- other actors ---------------------------------------------------------------------------

    async def call(self, method: Bound[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call another actor and wait; only before this turn changes or asks for anything.

        Raises:
            OrderError: The handler is a ``def``, has changed something, or is a query and
                calls a command.
            CycleError: The actor waits for this very turn.
            DeadlineError: The deadline of this turn passed.
        """
        result: R = await self.invoke(method.target, method.method, args, kwargs)
        return result

    async def invoke(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call ``method`` of ``target`` along this chain; as `call`."""
        scope = self._require_may_call(method)
        assert self._ordinal >= 0, "calls count from zero"
        message = method.pack(args, kwargs)
        actor = target.actor(self.actor.tenant)
        if method.kind == "query":
            return await scope.query(actor, message)
        key = target.idempotency_key
        if key is None and self._turn.request_id:
            key = f"{self.idempotency_key}:{self._ordinal}"
        self._ordinal += 1
        assert not self._commands, "a handler calls first and asks then"
        return await scope.call(actor, message, key=key)

    async def submit(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> NoReturn:
        """Refuse: what a handler submits has to leave with its commit.

        Raises:
            OrderError: Always.
        """
        del target, args, kwargs
        raise OrderError(f"{self.actor}: use ctx.send to submit {method.name} in a handler")

    def desk(self) -> NoReturn:
        """Refuse: a handler does not wait for what others submitted.

        Raises:
            OrderError: Always.
        """
        raise OrderError(f"{self.actor}: a handler has no submitted calls; keep the id instead")

    def _require_may_call(self, method: Method[Any, Any]) -> Scope:
        if self._scope is None:
            raise OrderError(f"{self.actor}: only an async def may call; use ctx.send instead")
        if self._kind == "query" and method.kind != "query":
            raise OrderError(f"{self.actor}: a query may call queries only, not {method.name}")
        if self._kind != "query" and (self._commands or (self._is_changed and self._is_changed())):
            raise OrderError(
                f"{self.actor}: {method.name} is called after this turn's first change; "
                "call first and change then, or use ctx.send"
            )
        return self._scope

    def send(self, method: Bound[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Send a command to another actor: exactly once, in order, after this turn is durable.

        Raises:
            OrderError: This is a query, or the method is none that can be sent.
            InvalidFieldError: An argument does not fit.
        """
        if method.method.kind != "command":
            raise OrderError(f"only commands can be sent, {method.method.name} is none")
        receiver = method.target.actor(self.actor.tenant)
        self._ask(c.Send(receiver=receiver, message=method.method.pack(args, kwargs)))

    # --- time, events, effects ------------------------------------------------------------------

    def remind(
        self, name: str, at_ms: int, method: Bound[P, Any], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Have a ``@reminder`` of this actor called at ``at_ms``; replaces one of that name.

        Raises:
            OrderError: This is a query, or the method is no reminder of this actor.
            InvalidFieldError: The name is empty, or an argument does not fit.
        """
        own = method.target.actor(self.actor.tenant) == self.actor
        if method.method.kind != "reminder" or not own:
            raise OrderError(f"{method.method.name} is no @reminder of {self.actor}")
        if not 1 <= len(name) <= limits.REMINDER_NAME_CHARS_MAX:
            bound = limits.REMINDER_NAME_CHARS_MAX
            raise InvalidFieldError("reminder", f"the name must have 1 to {bound} characters")
        message = method.method.pack(args, kwargs)
        self._ask(c.Remind(name=name, at_ms=at_ms, message=message))

    def cancel_reminder(self, name: str) -> None:
        """Cancel a reminder of this actor; harmless when there is none."""
        self._ask(c.Forget(name=name))

    def emit(self, kind: str, body: Any = None) -> None:
        """Append an event to this actor's log; readers see it once the turn is durable."""
        self._ask(c.Emit(kind=kind, body=body))

    def effect(
        self,
        kind: str,
        args: dict[str, Any],
        *,
        outcome: Bound[[Settled], Any],
        ref: str,
        timeout_ms: int = limits.INVOCATION_TIMEOUT_MS,
        summary: str = "",
    ) -> None:
        """Ask for something outside; its end arrives as a later turn of ``outcome``.

        Args:
            kind: Which executor carries it out.
            args: What the executor needs, msgspec-encodable.
            outcome: The ``@outcome`` of this actor to call.
            ref: This actor's own name for it, unique among its open effects.
            timeout_ms: How long it may take once started.
            summary: One line for the person who may be asked.

        Raises:
            OrderError: This is a query, the process runs no effects, or ``outcome`` is none.
        """
        if self._effects is None:
            raise OrderError(f"{self.actor}: this runtime was opened without executors")
        if outcome.method.kind != "outcome":
            raise OrderError(f"{outcome.method.name} is no @outcome")
        wish = EffectWish(
            kind=kind,
            ref=f"{outcome.method.name}{REF_SEPARATOR}{ref}",
            args=args,
            timeout_ms=timeout_ms,
            summary=summary,
        )
        self._ask(self._effects.propose(wish))

    def delete(self) -> None:
        """Delete this actor with this turn: a later call meets a new, empty one."""
        self._ask(c.Delete())

    def _ask(self, command: c.Command) -> None:
        if self._kind == "query":
            what = type(command).__name__
            raise OrderError(f"{self.actor}: a query changes nothing, and asked for {what}")
        assert isinstance(command, c.Command), "a turn asks for commands"
        if self._commands is None:
            self._commands = []
            self.has_asked = True
        self._commands.append(command)
        assert self._commands
