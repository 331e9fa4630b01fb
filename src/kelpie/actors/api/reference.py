"""Typed references: ``ref(Counter, "a")`` is a `Counter` whose methods run elsewhere."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from kelpie.core.errors import OrderError
from kelpie.core.ids import ActorId, Tenant

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kelpie.actors.api.definition import Actor
    from kelpie.actors.api.handle import CallDesk, CallHandle
    from kelpie.actors.api.method import Method

A = TypeVar("A", bound="Actor[Any]")


class Caller(Protocol):
    """Where a call goes: a running handler, an embedded runtime, a server far away."""

    def invoke(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Coroutine[Any, Any, Any]:
        """Call the method of the target and return its result."""
        ...

    def submit(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Coroutine[Any, Any, CallHandle[Any]]:
        """Keep a call of the target's method, and return its handle once it is durable."""
        ...

    def desk(self) -> CallDesk:
        """Return where submitted calls are asked about.

        Raises:
            OrderError: Nowhere: a handler does not wait for what others submitted.
        """
        ...


current_caller: Final[ContextVar[Caller | None]] = ContextVar("kelpie_caller", default=None)
"""The running handler's context, so that a reference made there needs no other."""


class Address:
    """Which actor a reference means, and how its calls are made."""

    __slots__ = ("_known", "caller", "idempotency_key", "key", "tenant", "timeout_ms", "type_name")

    def __init__(
        self,
        type_name: str,
        key: str,
        *,
        tenant: str | None = None,
        caller: Caller | None = None,
        idempotency_key: str | None = None,
        timeout_ms: int | None = None,
    ) -> None:
        self.type_name = type_name
        self.key = key
        self.tenant = tenant
        self.caller = caller
        self.idempotency_key = idempotency_key
        self.timeout_ms = timeout_ms
        self._known: ActorId | None = None

    def actor(self, tenant: Tenant) -> ActorId:
        """Return the actor's id; ``tenant`` is the caller's own, for references without one.

        Raises:
            InvalidFieldError: The key has a character that no id may have.
        """
        known = self._known
        if known is None or known.tenant != (self.tenant or tenant):
            owner = Tenant(self.tenant) if self.tenant else tenant
            known = self._known = ActorId(owner, self.type_name, self.key)
            assert known.tenant == owner, "a name belongs to its tenant"
            assert known.key == self.key, "a reference means one actor"
        return known

    def resolve(self) -> Caller:
        """Return where calls go.

        Raises:
            OrderError: The reference has no runtime, and no handler is running here.
        """
        caller = self.caller or current_caller.get()
        if caller is None:
            raise OrderError(
                f"ref({self.type_name}, {self.key!r}) has no runtime here: use runtime.ref(...)"
            )
        return caller


def ref(
    kind: type[A],
    key: str,
    *,
    idempotency_key: str | None = None,
    timeout_s: float | None = None,
) -> A:
    """Return a reference to the actor ``key`` of a type, for use inside a handler.

    Args:
        kind: The actor's class.
        key: Which actor; it is created by being called.
        idempotency_key: Makes one call of each method through this reference happen once.
        timeout_s: How long a call may take; the caller's own deadline is kept whatever it says.
    """
    timeout_ms = None if timeout_s is None else max(1, int(timeout_s * 1000))
    return kind.at(
        Address(kind.type_name(), key, idempotency_key=idempotency_key, timeout_ms=timeout_ms)
    )
