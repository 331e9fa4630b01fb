"""Follows one run through its agent's event log, and through the model's stream if asked.

Everything shown is read from the store by cursor; wake-ups only say when to look. The follower
never touches the run: when its reader leaves, the run goes on.

Invariants: a message is shown once; what an attempt streamed is not repeated when its message is
stored; a later attempt of the same model call streams under another message id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from kelpie.agents.model import Run, TranscriptMessage
from kelpie.core.ids import ActorId
from kelpie.core.limits import DRAIN_TIMEOUT_MS, EVENT_PAGE_ROWS_MAX
from kelpie.server.errors import FollowingEndedError
from kelpie.server.letta.deltas import Attempt
from kelpie.server.letta.message_types import AnyMessage
from kelpie.server.letta.message_view import view_message
from kelpie.server.letta.pending import PendingCall, read_pending, request_of
from kelpie.server.letta.subjects import read_run
from kelpie.server.letta.transcript import read_run as read_run_messages
from kelpie.server.operations import Call
from kelpie.storage.records import StoredEvent

LOOK_INTERVAL_S: Final = 1.0  # a lost wake-up, or the start of draining, costs at most this
DRAIN_GRACE_NS: Final = DRAIN_TIMEOUT_MS * 1_000_000 // 2  # a run may still end in this time
STREAM_PAGE_ROWS: Final = 500
MODEL_KIND: Final = "model.generate"


class _RunEvent(msgspec.Struct, frozen=True):
    run_id: str = ""
    ref: str = ""


class _Finished(msgspec.Struct, frozen=True):
    run: Run


class _EffectEvent(msgspec.Struct, frozen=True):
    effect_id: str
    kind: str
    ref: str
    attempt: int


_decode_run_event: Final = msgspec.msgpack.Decoder(_RunEvent).decode
_decode_finished: Final = msgspec.msgpack.Decoder(_Finished).decode
_decode_effect: Final = msgspec.msgpack.Decoder(_EffectEvent).decode
_decode_message: Final = msgspec.msgpack.Decoder(TranscriptMessage).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Nothing happened for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The run ended, or stands until a person answers."""

    run: Run
    waits: bool


Shown = AnyMessage | Quiet | Ended


class _Look(NamedTuple):
    """What one look at the store brought; ``moved`` says that another may bring more at once."""

    shown: list[Shown]
    moved: bool


@dataclass(slots=True, kw_only=True)
class Follower:
    """One reader of one run, from an event cursor taken before the run could move.

    Attributes:
        call: The request on whose behalf it reads.
        agent: Whose run.
        run_id: Which run.
        cursor: The last event that the reader does not want.
        tokens: Whether to show the model's answer while it streams.
        recheck: Whether the run may have ended before the cursor.
    """

    call: Call[Any, Any]
    agent: ActorId
    run_id: str
    cursor: int
    tokens: bool = False
    recheck: bool = False
    _ref: str = ""
    _attempt: Attempt | None = None
    _finished: Run | None = None
    _seen: set[str] = field(default_factory=set[str])
    _draining_since_ns: int = 0

    async def follow(self) -> AsyncGenerator[Shown, None]:
        """Yield messages as they become durable, `Quiet` in between, and `Ended` last.

        Raises:
            FollowingEndedError: The node drains and the run does not end in time.
            KelpieError: The store cannot be read.
        """
        with self.call.deps.hub.watch(self.agent) as watch:
            while True:
                look = await self._look()
                for shown in look.shown:
                    yield shown
                if look.shown and isinstance(look.shown[-1], Ended):
                    return
                if look.moved:
                    continue
                if not await watch.wait(LOOK_INTERVAL_S):
                    self.recheck = True
                    yield Quiet()
                self._check_draining()

    async def _look(self) -> _Look:
        """Return what is new; the end comes only when all before it has been shown."""
        store = self.call.deps.store
        shown: list[Shown] = []
        events = await store.events(self.agent, self.cursor, EVENT_PAGE_ROWS_MAX)
        for event in events:
            self.cursor = event.sequence
            shown += await self._take(event)
            if self._finished is not None:
                shown.append(Ended(run=self._finished, waits=False))
                return _Look(shown, moved=True)
        if len(events) == EVENT_PAGE_ROWS_MAX:
            return _Look(shown, moved=True)
        # What is written from here on wakes the watch, so an empty look would find nothing.
        shown += await self._read_stream()
        if self.recheck:
            self.recheck = False
            shown += await self._recheck()
        return _Look(shown, moved=self.recheck)

    async def _take(self, event: StoredEvent) -> Sequence[AnyMessage]:
        """Return what one event shows, and note what it says about the run."""
        match event.kind:
            case "message":
                message = _decode_message(event.body)
                if message.run_id == self.run_id and message.role in {"assistant", "tool"}:
                    return await self._show(message)
            case "step.started":
                started = _decode_run_event(event.body)
                if started.run_id == self.run_id:
                    self._ref = started.ref
            case "effect.started":
                effect = _decode_effect(event.body)
                if self.tokens and effect.kind == MODEL_KIND and effect.ref == self._ref:
                    self._attempt = Attempt(
                        effect_id=effect.effect_id, number=effect.attempt, run_id=self.run_id
                    )
            case "run.waiting":
                self.recheck |= _decode_run_event(event.body).run_id == self.run_id
            case "run.finished":
                run = _decode_finished(event.body).run
                if run.run_id == self.run_id:
                    self._finished = run
            case _:
                pass
        return ()

    async def _show(self, message: TranscriptMessage) -> Sequence[AnyMessage]:
        """Return a stored message, without the parts that its attempt has streamed."""
        self._seen.add(message.id)
        views = view_message(message)
        if message.role != "assistant" or self._attempt is None:
            return views
        rest = await self._read_stream()
        streamed = self._attempt.streamed
        self._attempt = None
        return [*rest, *(view for view in views if view.message_type not in streamed)]

    async def _read_stream(self) -> list[AnyMessage]:
        """Return what the running attempt has streamed since the last look."""
        attempt = self._attempt
        shown: list[AnyMessage] = []
        if attempt is None:
            return shown
        store, at_ms = self.call.deps.store, self.call.deps.clock.now_ms()
        while True:
            chunks = await store.stream(
                self.agent, attempt.effect_id, attempt.number, attempt.after, STREAM_PAGE_ROWS
            )
            for chunk in chunks:
                shown += attempt.take(chunk, at_ms)
            if len(chunks) < STREAM_PAGE_ROWS:
                return shown

    async def _recheck(self) -> Sequence[Shown]:
        """Return how the run stands, if it has ended or waits and nothing newer happened."""
        run = await read_run(self.call, self.agent, self.run_id)
        pending: Sequence[PendingCall] = ()
        if run.status == "waiting":
            pending = await read_pending(self.call.deps.runtime, self.agent, run)
        if not run.finished_ms and not pending:
            return ()
        if await self.call.deps.store.events(self.agent, self.cursor, 1):
            self.recheck = True
            return ()
        if not run.finished_ms:
            return (request_of(run, pending), Ended(run=run, waits=True))
        stored = await read_run_messages(self.call.deps.store, self.agent, self.run_id)
        missed = [message for message in stored if message.id not in self._seen]
        shown = [view for message in missed for view in _answers(message)]
        return (*shown, Ended(run=run, waits=False))

    def _check_draining(self) -> None:
        if self.call.deps.runtime.accepting():
            return
        now_ns = self.call.deps.clock.boot_ns()
        self._draining_since_ns = self._draining_since_ns or now_ns
        if now_ns - self._draining_since_ns >= DRAIN_GRACE_NS:
            raise FollowingEndedError(self.run_id)


def _answers(message: TranscriptMessage) -> list[AnyMessage]:
    return view_message(message) if message.role in {"assistant", "tool"} else []
