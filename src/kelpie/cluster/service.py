"""Carries out what other nodes ask for: calls and queries to the actors that this node owns.

A caller's whole request is answered by this node's own edge, which never passes it on.
A request for an actor that is owned elsewhere is answered with `NotOwnerError`, which names the
owner as far as it is known; it is never passed on, so that no request wanders.

Invariants: every request is answered, or its caller has left; a caller that leaves does not tear
the turn that it asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from kelpie.actors.calls import Calls
from kelpie.actors.commands import Message
from kelpie.actors.ownership import Ownership
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.line import IncomingRequest
from kelpie.cluster.messages import ActorCall, ActorQuery, EdgeAnswer, EdgeCall, encode
from kelpie.cluster.router import has_moved
from kelpie.core.errors import (
    ActorFailedError,
    CycleError,
    DrainingError,
    KelpieError,
    NotOwnerError,
)
from kelpie.core.ids import ActorId
from kelpie.core.limits import CALL_DEPTH_MAX, INVOCATION_TIMEOUT_MS_MAX

EdgeAnswering = Callable[[EdgeCall, int], Awaitable[EdgeAnswer]]
"""Answers a request that another node's edge passed on, within so many milliseconds."""


class OwnedActors(Calls, Protocol):
    """This node's actors, and what their messages look like; `Engine` is it."""

    def read_message(self, type_name: str, body: bytes) -> Message:
        """Return the message that another node encoded."""
        ...


def _untraced(trace: str) -> AbstractContextManager[None]:
    del trace
    return nullcontext()


async def _no_edge(request: EdgeCall, timeout_ms: int) -> EdgeAnswer:
    del request, timeout_ms
    raise DrainingError("the node does not answer callers' requests yet; try again")


class ClusterService:
    """Answers the requests of other nodes; implements `Answering`.

    Attributes:
        edge: Answers what other nodes' edges pass on; refuses until one is set.

    Args:
        local: This node's actors.
        ownership: Which of them it owns.
        supervisor: Runs the requests.
        within: Runs what it encloses as part of the caller's trace, given its traceparent.
    """

    def __init__(
        self,
        *,
        local: OwnedActors,
        ownership: Ownership,
        supervisor: Supervisor,
        within: Callable[[str], AbstractContextManager[None]] = _untraced,
    ) -> None:
        self._local = local
        self._ownership = ownership
        self._supervisor = supervisor
        self._within = within
        self.edge: EdgeAnswering = _no_edge

    def asked(self, request: IncomingRequest) -> None:
        """Begin to carry a request out."""
        task = self._supervisor.spawn("cluster.answer", self._serve(request))
        if task is None:
            request.fail(DrainingError("the node is shutting down; try again"))
        elif request.is_open:
            request.withdrawn = task.cancel

    async def _serve(self, request: IncomingRequest) -> None:
        try:
            with self._within(request.trace):
                request.answer(encode(await self._run(request)))
        except KelpieError as error:
            request.fail(error)
        finally:
            if request.is_open:
                request.fail(self._torn())

    async def _run(self, request: IncomingRequest) -> Any:
        body = request.body
        timeout_ms = min(request.timeout_ms, INVOCATION_TIMEOUT_MS_MAX)
        if isinstance(body, EdgeCall):
            return await self.edge(body, timeout_ms)
        return await self._run_turn(body, timeout_ms)

    async def _run_turn(self, body: ActorCall | ActorQuery, timeout_ms: int) -> Any:
        actor = ActorId.parse(body.actor)
        self._ownership.epoch(actor.shard)  # raises, and names the owner, if it is another node
        message = self._local.read_message(actor.type, body.message)
        chain = tuple(map(ActorId.parse, body.chain))
        if len(chain) > CALL_DEPTH_MAX or (actor in chain and isinstance(body, ActorCall)):
            raise CycleError(f"{actor} is called from a chain that it waits in", actor=body.actor)
        try:
            match body:
                case ActorCall():
                    return await self._local.call(
                        actor,
                        message,
                        principal=body.principal,
                        key=body.key,
                        timeout_ms=timeout_ms,
                        internal=body.is_internal,
                        chain=chain,
                    )
                case ActorQuery():
                    return await self._local.query(
                        actor, message, timeout_ms=timeout_ms, chain=chain
                    )
        except KelpieError as error:
            is_owned = self._ownership.owns(actor.shard)
            if not is_owned and has_moved(error, self._ownership, actor.shard):
                raise self._moved(actor, error) from error
            raise

    def _moved(self, actor: ActorId, error: KelpieError) -> NotOwnerError:
        owner = self._ownership.owner(actor.shard)
        text = f"{actor} is not served here any more ({error.code})"
        return NotOwnerError(text, shard=actor.shard, owner=owner)

    def _torn(self) -> KelpieError:
        if self._supervisor.closed:
            return DrainingError("the node is shutting down; try again")
        return ActorFailedError("the owner failed to carry the request out; its log says why")
