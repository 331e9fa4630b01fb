"""The hands of the gate: prepares proposed effects, starts approved ones, reports what came of it.

Every step it takes for an effect is first a turn of the effect's actor, so that a crash at any line
leaves a row from which the next process goes on. It executes nothing but an `Order`, which exists
only for a started record with its decision. At most one attempt of an effect runs here at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from kelpie.actors.calls import Calls
from kelpie.actors.hub import EventHub
from kelpie.actors.output import CommitListener
from kelpie.actors.ownership import Ownership
from kelpie.actors.sessions import LOOK_INTERVAL_S, EndedSessions
from kelpie.actors.supervisor import Supervisor
from kelpie.core.errors import ActorMovedError, InputError, KelpieError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.effects.executor import Executor, Order
from kelpie.effects.messages import EffectFinished, EffectPrepared, RecoverEffect, StartEffect
from kelpie.effects.model import EffectRecord, Outcome
from kelpie.effects.streaming import StreamLog
from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.protocol import Store
from kelpie.storage.records import Commit, CommitReceipt, EffectRow

PAGE_ROWS: Final = 500
TELL_RETRY_DELAY_S_MIN: Final = 0.2
TELL_RETRY_DELAY_S_MAX: Final = 30.0
PRINCIPAL: Final = "system:dispatcher"
CANCEL_NOTE: Final = "cancel requested"

T = TypeVar("T")

_decoder = msgspec.msgpack.Decoder(EffectRecord)


class Dispatcher:
    """Carries effects out for every actor of this node."""

    def __init__(
        self,
        *,
        store: Store,
        runtime: Calls,
        listen: Callable[[CommitListener], None],
        ownership: Ownership,
        sessions: EndedSessions,
        hub: EventHub,
        executors: Sequence[Executor],
        clock: Clock,
        telemetry: Telemetry,
        supervisor: Supervisor,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._ownership = ownership
        self._sessions = sessions
        self._hub = hub
        self._clock = clock
        self._telemetry = telemetry
        self._supervisor = supervisor
        self._executors: Mapping[str, Executor] = {each.kind: each for each in executors}
        assert len(self._executors) == len(executors), "two executors for one kind"
        self._slots = {each.kind: asyncio.Semaphore(each.concurrency_max) for each in executors}
        self._busy: set[str] = set()
        self._later: dict[str, EffectRow] = {}
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._open = False
        self._idle = asyncio.Event()
        self._idle.set()
        listen(self._on_commit)
        ownership.listen(gained=self._gained)

    @property
    def running_count(self) -> int:
        """How many attempts run now."""
        return len(self._running)

    async def start(self) -> None:
        """Take up every open effect that an earlier process left, then follow commits."""
        assert not self._open, "a dispatcher starts once"
        self.check_invariants()
        self._open = True
        await self._take_up()

    def _gained(self, shards: frozenset[int]) -> None:
        if self._open:
            self._supervisor.spawn("effects.gained", self._take_up(shards))

    async def _take_up(self, shards: Container[int] | None = None) -> None:
        """Consider every open effect of these shards, or of all, that no step is at."""
        after = ""
        while page := await self._store.effects_open(after, PAGE_ROWS):
            for row in page:
                is_meant = shards is None or row.actor.shard in shards
                if is_meant and row.effect_id not in self._busy:
                    self._consider(row)
            after = page[-1].effect_id

    def take_up(self, rows: Sequence[EffectRow]) -> None:
        """Take the next step for effects that no commit of this process announced."""
        for row in rows:
            self._consider(row)

    async def settle_restored(self) -> None:
        """After a restore: make every ``once`` effect that may have run since unknown."""
        after = ""
        while page := await self._store.effects_open(after, PAGE_ROWS):
            for row in page:
                message = RecoverEffect(
                    effect_id=row.effect_id,
                    attempt=row.attempt,
                    ended_session=row.session,
                    restored=True,
                )
                with contextlib.suppress(ActorMovedError):
                    await self._runtime.call(row.actor, message, principal=PRINCIPAL, internal=True)
            after = page[-1].effect_id

    async def drain(self, timeout_s: float) -> None:
        """Start nothing more; give running attempts ``timeout_s``, then stop them.

        A stopped attempt is not reported: its row says ``started``, and the next process recovers
        it by its promise.
        """
        assert timeout_s >= 0, "a time limit is not negative"
        self.check_invariants()
        self._open = False
        if self._running:
            self._idle.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                self._telemetry.log("warning", "effects.cut", count=len(self._running))
        for task in list(self._running.values()):
            task.cancel("drain")

    def check_invariants(self) -> None:
        """Assert what holds between two callbacks."""
        assert self._running.keys() <= self._busy, "an attempt runs outside of a step"
        assert self._later.keys() <= self._busy, "a step waits for nothing"

    # --- what follows a commit ------------------------------------------------------------------

    def _on_commit(self, commit: Commit, receipt: CommitReceipt) -> None:
        if receipt.first_event_sequence:
            self._hub.announce(commit.actor)
        for row in commit.effects:
            self._telemetry.count("kelpie.effects", kind=row.kind, state=row.state)
            self._consider(row)

    def _consider(self, row: EffectRow) -> None:
        """Take the next step for an effect as its row stands, if it is ours to take."""
        if not self._open or row.kind not in self._executors or not self._owns(row.actor):
            return
        if row.state == "started" and row.session == self._store.session:
            self._stop_if_asked(row)
            return
        if row.effect_id in self._busy:
            self._later[row.effect_id] = row
            return
        work: Callable[[EffectRow], Awaitable[None]]
        match row.state:
            case "proposed":
                work = self._prepare
            case "approved":
                work = self._attempt
            case "started":
                work = self._recover
            case _:
                return
        self._busy.add(row.effect_id)
        self._supervisor.spawn(f"effects.{row.state}:{row.effect_id}", self._step(row, work))

    async def _step(self, row: EffectRow, work: Callable[[EffectRow], Awaitable[None]]) -> None:
        """Take one step; then the one that a commit asked for meanwhile."""
        try:
            await work(row)
        finally:
            self._busy.discard(row.effect_id)
            later = self._later.pop(row.effect_id, None)
            if later is not None:
                self._consider(later)

    def _stop_if_asked(self, row: EffectRow) -> None:
        task = self._running.get(row.effect_id)
        if task is not None and _decoder.decode(row.body).note == CANCEL_NOTE:
            task.cancel(CANCEL_NOTE)

    # --- steps ----------------------------------------------------------------------------------

    async def _prepare(self, row: EffectRow) -> None:
        executor = self._executors[row.kind]
        record = _decoder.decode(row.body)
        prepared = await self._contain(record, executor.prepare(row.actor, record), sent=False)
        if isinstance(prepared, Outcome):
            message = EffectPrepared(effect_id=row.effect_id, failure=prepared)
        else:
            message = EffectPrepared(effect_id=row.effect_id, preparation=prepared)
        await self._tell(row.actor, message)

    async def _attempt(self, row: EffectRow) -> None:
        async with self._slots[row.kind]:
            if not self._open or not self._owns(row.actor):
                return
            session = self._store.session
            message = StartEffect(effect_id=row.effect_id, session=session)
            record = await self._tell(row.actor, message)
            if not isinstance(record, EffectRecord) or record.state != "started":
                return
            if record.session != session or not await self._may_hand_over(row.actor, record):
                return
            order = self._order(row.actor, record)
            outcome = await self._execute(order)
            if outcome is None:
                return
        finished = EffectFinished(
            effect_id=record.effect_id, attempt=record.attempt, outcome=outcome
        )
        await self._tell(row.actor, finished)

    async def _recover(self, row: EffectRow) -> None:
        """Another session started this; once it has ended, the effect's promise says the rest."""
        record = _decoder.decode(row.body)
        if not await self._is_over(row, record):
            return
        untouched = False
        if record.promise == "reconcilable":
            order = self._order(row.actor, record)
            reconciled = self._executors[row.kind].reconcile(order)
            outcome = await self._contain(record, reconciled, sent=True)
            if outcome is not None:
                finished = EffectFinished(
                    effect_id=row.effect_id, attempt=row.attempt, outcome=outcome
                )
                await self._tell(row.actor, finished)
                return
            untouched = True
        message = RecoverEffect(
            effect_id=row.effect_id,
            attempt=row.attempt,
            ended_session=row.session,
            untouched=untouched,
        )
        await self._tell(row.actor, message)

    async def _is_over(self, row: EffectRow, record: EffectRecord) -> bool:
        """Return once nobody executes another session's attempt any more; False if it moved on.

        What can be read back must be at rest first: its executor may go on until ``not_after``.
        """
        waits = record.promise == "reconcilable" and not self._sessions.is_alone
        while self._open and self._owns(row.actor) and row.effect_id not in self._later:
            is_late = not waits or self._clock.now_ms() > row.due_ms
            if is_late and await self._sessions.has_ended(row.session):
                return True
            await self._clock.sleep(LOOK_INTERVAL_S)
        return False

    async def _may_hand_over(self, actor: ActorId, record: EffectRecord) -> bool:
        """Look at the lease last: past it, others may take this attempt for an interrupted one.

        If the lease runs on after all, the attempt is given up, and the effect starts again.
        """
        if self._clock.boot_ns() < self._ownership.until_ns:
            return True
        while self._clock.boot_ns() >= self._ownership.until_ns:
            await self._clock.sleep(LOOK_INTERVAL_S)
        if self._open and self._store.session == record.session:
            given_up: Any = RecoverEffect(
                effect_id=record.effect_id,
                attempt=record.attempt,
                ended_session=record.session,
                untouched=True,
            )
            if record.promise == "once":
                error = "the node's lease ended before this began; nothing was sent"
                outcome = Outcome(status="failed", error=error, code="not_owner", sent=False)
                given_up = EffectFinished(
                    effect_id=record.effect_id, attempt=record.attempt, outcome=outcome
                )
            await self._tell(actor, given_up)
        return False

    async def _execute(self, order: Order) -> Outcome | None:
        """Run one attempt; None when the node stopped it, which the next process recovers."""
        record = order.record
        began_ns = self._clock.boot_ns()
        try:
            async with asyncio.TaskGroup() as scope:
                task = scope.create_task(self._run(order))
                self._running[record.effect_id] = task
        finally:
            self._running.pop(record.effect_id, None)
            seconds = (self._clock.boot_ns() - began_ns) / 1e9
            self._telemetry.observe("kelpie.effect.duration", seconds, kind=record.kind)
            if not self._running:
                self._idle.set()
        if not task.cancelled():
            return task.result()
        return Outcome(status="cancelled", error="stopped on request") if self._open else None

    async def _run(self, order: Order) -> Outcome:
        record = order.record
        try:
            with self._telemetry.span(
                "effect", **{"kelpie.effect.kind": record.kind, "kelpie.effect.tool": record.tool}
            ):
                async with asyncio.timeout(record.timeout_ms / 1000):
                    work = self._executors[record.kind].execute(order)
                    return await self._contain(record, work, sent=True)
        except TimeoutError:
            error = f"it took longer than {record.timeout_ms:,} ms and was stopped"
            status = _bad_end(record, sent=True)
            return Outcome(status=status, error=error, code="timeout")

    async def _contain(
        self, record: EffectRecord, work: Awaitable[T], *, sent: bool
    ) -> T | Outcome:
        """Return what an executor returns; what it raises fails this effect alone.

        ``sent`` says whether something may have left this process when it raises.
        """
        try:
            return await work
        except KelpieError as error:
            return Outcome(status="failed", error=error.message, code=error.code, sent=sent)
        except Exception as error:  # noqa: BLE001  a bug in one executor fails that effect alone
            return self._crash_outcome(record, error, sent=sent)

    def _crash_outcome(self, record: EffectRecord, error: Exception, *, sent: bool) -> Outcome:
        """A bug tells nothing of what was done, which matters where it may be done only once."""
        status = _bad_end(record, sent=sent)
        self._telemetry.count("kelpie.executor.failures", kind=record.kind)
        self._telemetry.log(
            "error", "executor.failed", kind=record.kind, effect=record.effect_id, error=repr(error)
        )
        return Outcome(status=status, error=repr(error), code="internal", sent=sent)

    # --- plumbing -------------------------------------------------------------------------------

    def _owns(self, actor: ActorId) -> bool:
        return self._ownership.is_whole or self._ownership.owns(actor.shard)

    def _order(self, actor: ActorId, record: EffectRecord) -> Order:
        return Order(
            actor=actor,
            record=record,
            attempt=record.attempt,
            not_after_ms=record.due_ms,
            stream=StreamLog(self._store, self._ownership, self._hub, actor, record).write,
        )

    async def _tell(self, actor: ActorId, message: Any) -> Any:
        """Have the actor take ``message``, again until it does: nobody else would tell it.

        Whatever fails here may pass: a full disk, a bug that a newer version corrects.
        """
        delay_s = TELL_RETRY_DELAY_S_MIN
        while True:
            try:
                return await self._runtime.call(actor, message, principal=PRINCIPAL, internal=True)
            except (NotFoundError, ActorMovedError):
                return None
            except InputError:
                raise
            except KelpieError as error:
                self._telemetry.log("warning", "effects.retry", error=error.message)
            await self._clock.sleep(delay_s)
            delay_s = min(2 * delay_s, TELL_RETRY_DELAY_S_MAX)


def _bad_end(record: EffectRecord, *, sent: bool) -> Literal["unknown", "failed"]:
    """Return how an attempt ends that cannot say what it did."""
    return "unknown" if sent and record.promise == "once" else "failed"
