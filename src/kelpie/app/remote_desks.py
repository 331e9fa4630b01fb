"""What a connected program can do beside calling actors: submitted calls, runs, approvals.

Owns no state: each method is one request, or the same question again until it is answered.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from kelpie.actors.api.handle import CallLook
from kelpie.actors.api.method import Method
from kelpie.actors.callers import CallStatus
from kelpie.actors.described import Described
from kelpie.app.card import render_card
from kelpie.app.wire import ServerWire, decoder_of
from kelpie.core.errors import ConflictError, DeadlineError, InvalidFieldError
from kelpie.core.limits import INVOCATION_TIMEOUT_MS
from kelpie.effects.model import DiffCard
from kelpie.host.clock import HostClock
from kelpie.storage.records import CallState, EffectState

RUN_LOOK_S: Final = 0.5  # between two looks at a run that goes on
CARD_WIDTH: Final = 100


def _segment(name: str) -> str:
    return quote(name, safe="")


# --- submitted calls ----------------------------------------------------------------------------


class CallInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A submitted call in a list. ``actor`` reads ``type/key``."""

    call_id: str
    actor: str
    method: str
    state: CallStatus
    principal: str
    created_ms: int
    ended_ms: int | None
    expires_ms: int | None


class _CallView(CallInfo, frozen=True, kw_only=True):
    result: msgspec.Raw
    error: Described | None


class _CallPage(msgspec.Struct):
    calls: list[CallInfo]


class RemoteCalls:
    """The submitted calls of the caller's tenant. Implements `CallDesk`."""

    def __init__(self, wire: ServerWire) -> None:
        self._wire = wire

    async def find(
        self,
        *,
        actor: str | None = None,
        state: CallState | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[CallInfo]:
        """Return submitted calls, oldest first.

        Args:
            actor: Only calls of this actor, ``type/key``.
            state: Only calls in this state; one that runs counts as pending.
            after: Only what follows this call, by id.
            limit: At most so many.

        Raises:
            NotFoundError: ``after`` names no call.
        """
        asked = {"actor": actor, "state": state, "after": after, "limit": limit}
        return (await self._wire.get("/v1/calls", _CallPage, asked)).calls

    async def look(self, call_id: str, method: Method[Any, Any], *, wait_s: float) -> CallLook:
        """Return a call as it is once it ended, or after ``wait_s``; see `CallDesk`.

        Raises:
            InvalidFieldError: The call is one of another method, whose result has another type.
        """
        path, wait_ms = f"/v1/calls/{_segment(call_id)}", int(wait_s * 1000)
        found = await self._wire.get(path, _CallView, {"wait_s": wait_s}, wait_ms=wait_ms)
        if found.method != method.name:
            raise InvalidFieldError("call", f"{call_id} is a call of {found.method}")
        if found.state == "completed":
            try:
                value = decoder_of(method.result).decode(found.result)
            except msgspec.MsgspecError as error:
                raise InvalidFieldError("result", f"{method.name}: {error}") from error
            return CallLook(found.state, value)
        return CallLook(found.state, error=found.error.restore() if found.error else None)

    async def cancel(self, call_id: str) -> None:
        """Take a call back that has not begun; see `CallDesk`.

        Raises:
            CallBegunError: It runs, or has ended.
            NotFoundError: There is none, or its end is not kept any more.
        """
        await self._wire.post(f"/v1/calls/{_segment(call_id)}/cancel", _CallView, {})


# --- runs ---------------------------------------------------------------------------------------


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A run of an agent: its way from a message to the end of the answer."""

    id: str
    agent_id: str
    status: str
    stop_reason: str | None
    created_at: datetime
    completed_at: datetime | None
    metadata: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether it ended, well or not."""
        return self.completed_at is not None

    @property
    def needs_approval(self) -> bool:
        """Whether it stands until a person answers: see ``remote.approvals``."""
        return not self.is_over and self.stop_reason == "requires_approval"


class RemoteRuns:
    """The runs of the server's agents."""

    def __init__(self, wire: ServerWire) -> None:
        self._wire = wire

    async def start(
        self, agent_id: str, text: str, *, idempotency_key: str | None = None
    ) -> RunInfo:
        """Send a user's message to an agent and return the run that answers it by itself.

        Raises:
            NotFoundError: There is no such agent.
            ConflictError: The agent waits for an approval.
        """
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        body = {"messages": [{"role": "user", "content": text}]}
        path = f"/v1/agents/{_segment(agent_id)}/messages/async"
        run: RunInfo = await self._wire.post(path, RunInfo, body, headers)
        return run

    async def show(self, run_id: str) -> RunInfo:
        """Return a run.

        Raises:
            NotFoundError: There is no such run.
        """
        return await self._wire.get(f"/v1/runs/{_segment(run_id)}", RunInfo, {})

    async def wait(
        self, run_id: str, *, timeout_s: float = INVOCATION_TIMEOUT_MS / 1000
    ) -> RunInfo:
        """Return a run once it ended or needs an approval.

        Raises:
            DeadlineError: It goes on after ``timeout_s``.
            NotFoundError: There is no such run.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while True:
            run = await self.show(run_id)
            if run.is_over or run.needs_approval:
                return run
            if loop.time() >= until_s:
                raise DeadlineError(f"run {run_id} goes on after {timeout_s:g} s; ask again")
            await asyncio.sleep(RUN_LOOK_S)

    async def cancel(self, run: RunInfo) -> RunInfo:
        """Stop a run, and return it as it then is.

        Raises:
            ConflictError: It cannot be stopped any more.
        """
        path = f"/v1/agents/{_segment(run.agent_id)}/messages/cancel"
        await self._wire.post(path, dict[str, str], {"run_ids": [run.id]})
        return await self.show(run.id)


# --- approvals ----------------------------------------------------------------------------------


class ApprovalInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An effect that a person has to answer for, and what its Diff Card shows.

    Attributes:
        digest: What an answer is bound to: exactly this effect, with these arguments.
        due_ms: When it counts as denied, in milliseconds since 1970 UTC.
    """

    effect_id: str
    actor: str
    kind: str
    state: EffectState
    tool: str
    summary: str
    digest: str
    args: dict[str, Any]
    card: DiffCard | None
    due_ms: int
    created_ms: int
    note: str = ""

    def card_text(self, *, width: int = CARD_WIDTH) -> str:
        """Return the Diff Card as `kelpie approvals show` prints it.

        Nothing of it is left out, and nothing that it says can forge one of its lines.
        """
        now_ms = HostClock().now_ms()
        shown: dict[str, Any] = msgspec.to_builtins(self)
        return "\n".join(render_card(shown, width=width, now_ms=now_ms, paint=_paint_nothing))


class _ApprovalPage(msgspec.Struct):
    effects: list[ApprovalInfo]


class RemoteApprovals:
    """The questions that wait for a person."""

    def __init__(self, wire: ServerWire) -> None:
        self._wire = wire

    async def find(self, *, after: str | None = None, limit: int = 100) -> list[ApprovalInfo]:
        """Return what waits for an answer, oldest first.

        Args:
            after: Only what follows this effect, by id.
            limit: At most so many.
        """
        asked = {"after": after, "limit": limit}
        return (await self._wire.get("/v1/approvals", _ApprovalPage, asked)).effects

    async def show(self, effect_id: str) -> ApprovalInfo:
        """Return one question, answered or not.

        Raises:
            NotFoundError: There is no such effect.
        """
        return await self._wire.get(f"/v1/approvals/{_segment(effect_id)}", ApprovalInfo, {})

    async def approve(self, approval: ApprovalInfo, *, reason: str = "") -> ApprovalInfo:
        """Say yes to exactly what ``approval`` shows: the answer carries its digest.

        Raises:
            AlreadyDecidedError: It was answered before, or its time has passed.
            ConflictError: The effect is another by now; look again.
        """
        if not approval.digest:
            # Without one the server would take a yes to whatever the effect is by then.
            text = f"effect {approval.effect_id} has not been shown yet; look again"
            raise ConflictError(text, effect_id=approval.effect_id)
        body = {"digest": approval.digest, "reason": reason}
        return await self._answer(approval, "approve", body)

    async def deny(self, approval: ApprovalInfo, *, reason: str = "") -> ApprovalInfo:
        """Say no.

        Raises:
            AlreadyDecidedError: It was answered before, or its time has passed.
        """
        return await self._answer(approval, "deny", {"reason": reason})

    async def _answer(
        self, approval: ApprovalInfo, verb: str, body: dict[str, str]
    ) -> ApprovalInfo:
        path = f"/v1/approvals/{_segment(approval.effect_id)}/{verb}"
        answered: ApprovalInfo = await self._wire.post(path, ApprovalInfo, body)
        return answered


def _paint_nothing(text: str, style: str) -> str:
    del style
    return text
