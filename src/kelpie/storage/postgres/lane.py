"""Group commit over one connection: members queue on the event loop, a batch at a time is sent.

While one batch is on its way the next one gathers. A shard's members always take the same lane, so
that an actor's commits apply in the order of their submission.

When a check of a batch does not hold, the whole batch was undone: it is cut in halves until the
culprit stands alone, which is then looked at and refused in the store's own words. Members whose
epoch has moved are told apart at once, since after a take-over there are many of them.

Invariants: members are written in the order of `submit`, as far as they share an actor; at most one
batch runs at a time; every future comes to an outcome.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from kelpie.core.errors import (
    KelpieError,
    OverloadedError,
    StoreError,
)
from kelpie.core.limits import (
    COMMIT_BATCH_BYTES_MAX,
    COMMIT_BATCH_ROWS_MAX,
    COMMIT_QUEUE_BYTES_MAX,
    COMMIT_QUEUE_DEPTH_MAX,
    PURGE_SLICE_ROWS,
)
from kelpie.storage import refusals
from kelpie.storage.audit import GENESIS, AuditHead
from kelpie.storage.postgres import diagnosis
from kelpie.storage.postgres.driver import Connection, is_common, translate_error
from kelpie.storage.postgres.link import Link, RefusedError, ServerFailedError
from kelpie.storage.postgres.migrations.apply import CROWDED, FENCED
from kelpie.storage.postgres.plan import Answer, Append, Member, Plan, Submit
from kelpie.storage.records import Commit

_HEAD: Final = "SELECT sequence, hash FROM audit WHERE shard = $1 ORDER BY sequence DESC LIMIT 1"
_MEMBERS: Final = (Commit, Submit, Append)
_ATTEMPTS: Final = 3  # of a member that stands alone and against which nothing speaks


class Single(Protocol):
    """A write that takes a transaction of its own."""

    async def __call__(self, lane: Lane) -> Any:
        """Carry it out and return its value; raises the `KelpieError` that refuses it."""
        ...


# A member, its size in bytes and the future of its value. Bare, since every turn makes one.
_Queued = tuple[Member | Single, int, asyncio.Future[Any]]


class Room:
    """What waits before all lanes of a store together, which is what is bounded."""

    __slots__ = ("count", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0

    def has_place(self, size_bytes: int) -> bool:
        """Return whether a member of ``size_bytes`` may wait."""
        if self.count >= COMMIT_QUEUE_DEPTH_MAX:
            return False
        return self.size_bytes + size_bytes <= COMMIT_QUEUE_BYTES_MAX


class Lane:
    """One writing connection and the queue in front of it. Belongs to the running event loop."""

    __slots__ = (
        "_heads",
        "_idle",
        "_is_closed",
        "_is_scheduled",
        "_loop",
        "_queue",
        "_queued_bytes",
        "_room",
        "_shards",
        "_singles",
        "_task",
        "has_housework",
        "link",
    )

    def __init__(self, link: Link, room: Room, *, shards: Callable[[], Sequence[int]]) -> None:
        self.link = link
        self._room = room
        self._shards = shards
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._singles = 0  # that wait
        self._heads: dict[int, tuple[int, AuditHead]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_scheduled = False
        self._is_closed = False
        self._idle: list[asyncio.Future[None]] = []
        self.has_housework = False

    # --- queue ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many members wait."""
        return len(self._queue)

    def submit(self, member: Member | Single, size_bytes: int) -> asyncio.Future[Any]:
        """Queue ``member`` and return the future of its value; never blocks, never raises.

        Cancelling the future does not take the member back.
        """
        assert size_bytes >= 0, "a member has a size"
        future: asyncio.Future[Any] = self._loop.create_future()
        room = self._room
        if self._is_closed or not room.has_place(size_bytes):
            future.set_exception(self._refusal())
            return future
        self._queue.append((member, size_bytes, future))
        self._queued_bytes += size_bytes
        room.count += 1
        room.size_bytes += size_bytes
        if type(member) not in _MEMBERS:
            self._singles += 1
        if self._task is None and not self._is_scheduled:
            self._schedule()
        return future

    def _refusal(self) -> KelpieError:
        if self._is_closed:
            return StoreError("the store is closed; open it again")
        room = self._room
        message = f"{room.count:,} commits ({room.size_bytes:,} bytes) wait for the disk; "
        return OverloadedError(f"{message}try again later", waiting=room.count)

    def clean(self) -> None:
        """Remove what deleted actors of the owned shards left behind, slice by slice."""
        self.has_housework = True
        self._schedule()

    async def close(self) -> None:
        """Refuse everything new, and return once what was queued has come to its outcome."""
        self._is_closed = True
        while self._queue or self._task is not None or self._is_scheduled:
            future = self._loop.create_future()
            self._idle.append(future)
            await future
        await self.link.close()
        self.check_invariants()

    def check_invariants(self) -> None:
        """Assert what always holds between two callbacks."""
        assert self._queued_bytes == sum(size_bytes for _, size_bytes, _ in self._queue)
        assert self._room.size_bytes >= self._queued_bytes
        assert self._room.count >= len(self._queue)
        assert not self._queue or self._is_scheduled or self._task is not None

    def _schedule(self) -> None:
        # One turn later, so that everything submitted in this turn shares a batch.
        if not self._is_scheduled and self._task is None:
            self._is_scheduled = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        assert self._task is None, "one batch at a time"
        self._is_scheduled = False
        batch = self._take_batch()
        work = self._run(batch)
        name = f"store lane {self.link.writer}"
        # The lane owns it: `close` waits for its end, which `_finish` sees whatever it is.
        self._task = asyncio.Task(work, loop=self._loop, name=name)
        self._task.add_done_callback(lambda task: self._finish(task, batch))

    def _take_batch(self) -> list[_Queued]:
        """Take what fits one batch off the queue: a single write alone, or members together."""
        queue = self._queue
        is_all = len(queue) <= COMMIT_BATCH_ROWS_MAX and not self._singles
        if is_all and self._queued_bytes <= COMMIT_BATCH_BYTES_MAX:
            taken = list(queue)
            queue.clear()
            taken_bytes = self._queued_bytes
        else:
            taken, taken_bytes = self._take_some()
        self._queued_bytes -= taken_bytes
        self._room.count -= len(taken)
        self._room.size_bytes -= taken_bytes
        return taken

    def _take_some(self) -> tuple[list[_Queued], int]:
        queue = self._queue
        taken: list[_Queued] = []
        taken_bytes = 0
        while queue and len(taken) < COMMIT_BATCH_ROWS_MAX:
            member, size_bytes, _ = queue[0]
            is_single = type(member) not in _MEMBERS
            is_full = taken_bytes + size_bytes > COMMIT_BATCH_BYTES_MAX
            if taken and (is_full or is_single):
                break
            taken_bytes += size_bytes
            taken.append(queue.popleft())
            if is_single:
                self._singles -= 1
                break
        return taken, taken_bytes

    def _finish(self, task: asyncio.Task[None], batch: Sequence[_Queued]) -> None:
        """Go on after a batch; a defect in it fails what it left without an outcome."""
        self._task = None
        cause = None if task.cancelled() else task.exception()
        for _, _, future in batch:
            if not future.done():
                failure = StoreError(f"a commit could not be carried out: {cause!r}")
                failure.__cause__ = cause
                future.set_exception(failure)
        if cause is not None:
            self.has_housework = False
        if self._queue or (self.has_housework and not self._is_closed):
            self._schedule()
            return
        waiting, self._idle = self._idle, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- batches --------------------------------------------------------------------------------

    async def _run(self, batch: Sequence[_Queued]) -> None:
        first = batch[0][0] if batch else None
        if first is not None and not isinstance(first, _MEMBERS):
            await self._run_single(first, batch[0][2])
        elif first is not None:
            outcomes = await self._write([member for member, _, _ in batch])  # type: ignore[misc]
            for (_, _, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, KelpieError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        if self.has_housework and not self._is_closed:
            await self._clean_slice()

    async def _run_single(self, single: Single, future: asyncio.Future[Any]) -> None:
        try:
            value = await single(self)
        except KelpieError as error:
            if not future.done():
                future.set_exception(_own_words(error))
        else:
            if not future.done():
                future.set_result(value)

    async def _clean_slice(self) -> None:
        shards = list(self._shards())

        async def purge(connection: Connection) -> bool:
            query = "SELECT purge_1($1, $2)"
            return bool(await connection.fetchval(query, shards, PURGE_SLICE_ROWS))

        try:
            self.has_housework = bool(shards) and await self.link.ask(purge)
        except KelpieError:
            self.has_housework = False  # the next deletion or the next owner tries again

    async def _write(self, members: Sequence[Member]) -> list[Any]:
        """Write members in order and return what became of each: its value or its refusal."""
        outcomes: list[Any] = []
        while len(outcomes) < len(members):
            rest = members[len(outcomes) :]
            try:
                await self._load_heads(rest)
            except KelpieError as error:
                outcomes += [error] * len(rest)
                break
            plan, count = self._plan(rest)
            part = rest[:count]
            outcomes += await self._write_plan(plan, part)
        return outcomes

    def _plan(self, members: Sequence[Member]) -> tuple[Plan, int]:
        """Return a plan of as many members as can share a batch, and their number."""
        plan = Plan({shard: head for shard, (_, head) in self._heads.items()})
        count = 0
        for member in members:
            if not plan.take(member):
                break
            count += 1
        assert count >= 1, "a member alone always has a plan"
        return plan, count

    async def _write_plan(self, plan: Plan, members: Sequence[Member]) -> list[Any]:
        if len(members) == 1:
            try:
                return [await self._write_alone(plan, members[0])]
            except KelpieError as error:
                return [_own_words(error)]
        try:
            answer = await self.link.commit(plan.arguments())
        except RefusedError as error:
            if error.refused.code == FENCED:
                return await self._write_unfenced(members)
        except ServerFailedError as error:
            if is_common(error.error):
                return [_own_words(error)] * len(members)
        except StoreError as error:
            return [error] * len(members)
        else:
            return self._settle(plan, answer)
        self._forget_heads(members)
        middle = len(members) // 2
        first = await self._write(members[:middle])
        return first + await self._write(members[middle:])

    async def _write_unfenced(self, members: Sequence[Member]) -> list[Any]:
        """Refuse the members whose epoch has moved, and write the others."""
        try:
            epochs = await self.link.ask(diagnosis.read_epochs)
        except KelpieError as error:
            return [error] * len(members)
        outcomes: dict[int, Any] = {}
        kept: list[int] = []
        for index, member in enumerate(members):
            shard = _shard_of(member)
            current = epochs.get(shard, 0)
            if current == member.epoch:
                kept.append(index)
            else:
                outcomes[index] = refusals.fenced(shard, member.epoch, current)
        if len(kept) == len(members):  # moved away and back is impossible: epochs only grow
            middle = len(members) // 2
            first = await self._write(members[:middle])
            return first + await self._write(members[middle:])
        written = await self._write([members[index] for index in kept]) if kept else []
        outcomes.update(zip(kept, written, strict=True))
        return [outcomes[index] for index in range(len(members))]

    async def _write_alone(self, plan: Plan, member: Member) -> Any:
        """Write one member, or raise why it is refused."""
        for _ in range(_ATTEMPTS):
            try:
                if not plan.is_broken:
                    return self._settle(plan, await self.link.commit(plan.arguments()))[0]
            except RefusedError as error:
                crowded = error.refused.code == CROWDED
            else:
                crowded = False
            refusal = await self.link.ask(lambda c: diagnosis.find_refusal(c, member))
            if refusal is not None:
                raise refusal
            forgotten: list[tuple[str, str]] = []
            if isinstance(member, Submit):
                known = await self.link.ask(lambda c: diagnosis.find_call(c, member.call))
                if known is not None and not 0 < known.expires_ms <= member.call.now_ms:
                    if known.request == member.call.request:
                        return known
                    raise refusals.call_key_reused(member.call)
                forgotten = await self._make_room(member, known.call_id if known else "", crowded)
            self._forget_heads([member])
            await self._load_heads([member])
            plan, _count = self._plan([member])
            plan.forgotten = forgotten
        raise StoreError("a commit was refused for no reason that can be found; try it again")

    async def _make_room(
        self,
        member: Submit,
        known: str,
        crowded: bool,  # noqa: FBT001
    ) -> list[tuple[str, str]]:
        """Return the ended calls that have to go for another."""
        tenant = member.call.actor.tenant
        forgotten: list[tuple[str, str]] = [(tenant, known)] if known else []
        if crowded:
            oldest = await self.link.ask(lambda c: diagnosis.find_oldest_ended(c, tenant))
            if oldest is None:
                raise refusals.too_many_calls()
            if oldest != known:
                forgotten.append((tenant, oldest))
        return forgotten

    def _settle(self, plan: Plan, answer: Answer) -> list[Any]:
        """Return the members' values after their batch was committed."""
        if plan.has_audit:
            for shard, head in plan.heads.items():
                if shard in plan.fences:
                    self._heads[shard] = (plan.fences[shard], head)
        if plan.deletes:
            self.has_housework = True
        return plan.settle(answer)

    # --- audit chains ---------------------------------------------------------------------------

    async def head(self, shard: int, epoch: int) -> AuditHead:
        """Return the newest link of a chain that this session's ``epoch`` lets nobody else move."""
        known = self._heads.get(shard)
        if known is not None and known[0] == epoch:
            return known[1]

        async def read(connection: Connection) -> AuditHead:
            row = await connection.fetchrow(_HEAD, shard)
            return AuditHead(shard, row[0], row[1]) if row else AuditHead(shard, 0, GENESIS)

        found = await self.link.ask(read)
        self._heads[shard] = (epoch, found)
        return found

    def advance(self, head: AuditHead, epoch: int) -> None:
        """Remember a link that was written."""
        assert head.sequence >= 1, "a chain counts from one"
        self._heads[head.shard] = (epoch, head)

    def forget_head(self, shard: int) -> None:
        """Read the chain again before its next link."""
        self._heads.pop(shard, None)

    async def _load_heads(self, members: Sequence[Member]) -> None:
        for member in members:
            if isinstance(member, Commit) and member.audit:
                known = self._heads.get(member.shard)
                if known is None or known[0] != member.epoch:
                    await self.head(member.shard, member.epoch)

    def _forget_heads(self, members: Sequence[Member]) -> None:
        for member in members:
            if isinstance(member, Commit) and member.audit:
                self.forget_head(member.shard)


def _shard_of(member: Member) -> int:
    if isinstance(member, Submit):
        return member.call.actor.shard
    return member.shard if isinstance(member, Commit) else member.actor.shard


def _own_words(error: KelpieError) -> KelpieError:
    """Return the error that leaves this package for one that does not."""
    if isinstance(error, ServerFailedError):
        failure: KelpieError = translate_error(error.error, "the commit")
        failure.__cause__ = error.error
        return failure
    assert not isinstance(error, RefusedError), "a refusal is explained before it leaves"
    return error
