"""Commits, ownership and requests with keys: the shipped statements over a real database.

Two processes in turn take over one store, and neither is told that the other did; each keeps an
actor in memory, lets turns run ahead of the disk, and may die with or without having heard of its
last commit. Two turns must happen once: one caused by a stored message, one asked for under a key.

What is explored is the engine itself: schema, take-over, reads and batches are those of
`kelpie.storage.sqlite`, run on a copy of the database for every step. Fencing is judged by what it
is for: that the owner's memory is what is stored.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import FencedError, KelpieError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.sim.explore import Action, Law, Model, StepLaw
from kelpie.sim.models.still import NOW_MS, StillClock, run_at_once
from kelpie.storage.records import Commit, CommitReceipt, OutboxRow, ReplyRecord
from kelpie.storage.sqlite.batch import run_batch
from kelpie.storage.sqlite.migrations import migrate
from kelpie.storage.sqlite.opening import take_over
from kelpie.storage.sqlite.reads import SqliteReads

ACTOR: Final = ActorId(TENANT_DEFAULT, "counter", "c")
SENDER: Final = ActorId(TENANT_DEFAULT, "counter", "sender")
KEY: Final = "k"
METHOD: Final = "add"
VERSION_MAX: Final = 2
MESSAGE_ID: Final = 1

Cause = Literal["call", "message", "key"]
CAUSES: Final[tuple[Cause, ...]] = ("call", "message", "key")

Submit = Callable[[sqlite3.Connection, Sequence[Commit]], Sequence[Any]]
"""Writes commits and returns, for each, its receipt or the error that refused it."""


def submit_as_shipped(connection: sqlite3.Connection, commits: Sequence[Commit]) -> Sequence[Any]:
    """Write one batch."""
    return run_batch(connection, commits, None).outcomes


class Queued(NamedTuple):
    """A commit on its way to the disk: why its turn ran, and what it makes of which state.

    ``has_fallen`` says that an earlier commit which it builds on was refused: its caller was told
    to try again.
    """

    cause: Cause
    epoch: int
    before: int
    total: int
    has_fallen: bool = False


class Memory(NamedTuple):
    """An actor as a process has it."""

    version: int
    total: int


class StoredSummary(NamedTuple):
    """What the database holds, as far as it matters here."""

    epoch: int
    version: int
    total: int
    has_message: bool
    has_reply: bool
    sessions_open: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process: down while ``epoch`` is 0; ``is_new`` says that it found no reply to the key."""

    epoch: int = 0
    memory: Memory | None = None
    queue: tuple[Queued, ...] = ()
    is_new: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreWorld:
    """The database and the processes, and what really happened.

    Attributes:
        image: The database, compressed.
        stored: What it holds.
        processes: In turn.
        acknowledged: The newest version that somebody was told of.
        accepted: How many commits of each cause the store took.
        fallen_taken: How many commits it took whose callers had been told to try again.
    """

    image: bytes
    stored: StoredSummary
    processes: tuple[Process, ...]
    acknowledged: int = 0
    accepted: tuple[tuple[Cause, int], ...] = tuple((cause, 0) for cause in CAUSES)
    fallen_taken: int = 0

    def with_process(self, index: int, process: Process) -> StoreWorld:
        """Return the world with one process replaced."""
        processes = (*self.processes[:index], process, *self.processes[index + 1 :])
        assert len(processes) == len(self.processes), "a process goes where one was"
        return replace(self, processes=processes)


# --- the database -------------------------------------------------------------------------------


def _open_image(image: bytes) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    if image:
        connection.deserialize(zlib.decompress(image))
    return connection


def _reads(connection: sqlite3.Connection) -> SqliteReads:
    return SqliteReads(Path("memory"), connection, StillClock())


def _summarize(connection: sqlite3.Connection) -> StoredSummary:
    reads = _reads(connection)
    actor = run_at_once(reads.load(ACTOR))
    (epoch,) = connection.execute(
        "SELECT epoch FROM shards WHERE shard = ?", (ACTOR.shard,)
    ).fetchone()
    (sessions,) = connection.execute(
        "SELECT count(*) FROM sessions WHERE ended_ms IS NULL"
    ).fetchone()
    return StoredSummary(
        epoch=epoch,
        version=actor.version if actor else 0,
        total=int(actor.state) if actor else 0,
        has_message=bool(run_at_once(reads.outbox(0, 1))),
        has_reply=run_at_once(reads.reply(ACTOR, METHOD, KEY)) is not None,
        sessions_open=sessions,
    )


def _compress(connection: sqlite3.Connection) -> bytes:
    return zlib.compress(connection.serialize(), 1)


def _saved(world: StoreWorld, connection: sqlite3.Connection) -> StoreWorld:
    return replace(world, image=_compress(connection), stored=_summarize(connection))


def _first_image() -> StoreWorld:
    """Return a store with one waiting message, opened by nobody since."""
    with closing(_open_image(b"")) as connection:
        migrate(connection)
        grants = take_over(connection, "session-0", NOW_MS, "incarnation")
        epoch = next(grant.epoch for grant in grants if grant.shard == SENDER.shard)
        send = OutboxRow(sender=SENDER, receiver=ACTOR, body=b"add")
        commit = Commit(
            actor=SENDER,
            shard=SENDER.shard,
            epoch=epoch,
            incarnation=1,
            expected_version=0,
            schema_version=1,
            now_ms=NOW_MS,
            state=b"",
            sends=(send,),
        )
        (receipt,) = run_batch(connection, [commit], None).outcomes
        assert receipt.message_ids == (MESSAGE_ID,), "the first message of a store"
        empty = StoredSummary(0, 0, 0, has_message=True, has_reply=False, sessions_open=1)
        world = StoreWorld(image=b"", stored=empty, processes=(Process(), Process()))
        return _saved(world, connection)


# --- what can happen ----------------------------------------------------------------------------


def _take(world: StoreWorld, index: int) -> StoreWorld:
    with closing(_open_image(world.image)) as connection:
        session = f"session-{world.stored.epoch}"
        grants = take_over(connection, session, NOW_MS, "incarnation")
        epoch = next(grant.epoch for grant in grants if grant.shard == ACTOR.shard)
        return _saved(world, connection).with_process(index, Process(epoch=epoch))


def _load(world: StoreWorld, index: int) -> StoreWorld:
    memory = Memory(world.stored.version, world.stored.total)
    return world.with_process(index, replace(world.processes[index], memory=memory))


def _look_up(world: StoreWorld, index: int) -> StoreWorld:
    process = replace(world.processes[index], is_new=not world.stored.has_reply)
    return world.with_process(index, process)


def _turn(world: StoreWorld, index: int, cause: Cause) -> StoreWorld:
    process = world.processes[index]
    assert process.memory is not None, "a turn needs the actor"
    version, total = process.memory
    queued = Queued(cause, process.epoch, version, total + 1)
    after = replace(
        process,
        memory=Memory(version + 1, total + 1),
        queue=(*process.queue, queued),
        is_new=process.is_new and cause != "key",
    )
    return world.with_process(index, after)


def _make_bystander(queued: Queued, number: int) -> Commit:
    """Return the first commit of another actor, which shares a batch with the queued ones."""
    actor = ActorId(TENANT_DEFAULT, "counter", f"bystander-{number}")
    commit = _make_commit(queued._replace(cause="call", before=0))
    return msgspec.structs.replace(commit, actor=actor, shard=actor.shard)


def _make_commit(queued: Queued) -> Commit:
    state = str(queued.total).encode()
    reply = ReplyRecord(METHOD, KEY, digest_bytes(b"add"), state, 2 * NOW_MS)
    return Commit(
        actor=ACTOR,
        shard=ACTOR.shard,
        epoch=queued.epoch,
        incarnation=1,
        expected_version=queued.before,
        schema_version=1,
        now_ms=NOW_MS,
        state=state,
        consumes=MESSAGE_ID if queued.cause == "message" else None,
        reply=reply if queued.cause == "key" else None,
    )


@dataclass(frozen=True, slots=True)
class _Setting:
    """How commits are written, why turns run, and how many other actors share a batch."""

    submit: Submit
    causes: tuple[Cause, ...]
    bystanders: int


class _Written(NamedTuple):
    image: bytes
    stored: StoredSummary
    outcomes: Sequence[Any]


@lru_cache(maxsize=4_096)
def _write_batch(setting: _Setting, image: bytes, batch: tuple[Queued, ...]) -> _Written:
    """Write a batch on a copy of the database; the same again is remembered."""
    with closing(_open_image(image)) as connection:
        (actors,) = connection.execute("SELECT count(*) FROM actors").fetchone()
        others = [_make_bystander(batch[0], actors + n) for n in range(setting.bystanders)]
        commits = [_make_commit(queued) for queued in batch]
        written = setting.submit(connection, [*others, *commits])
        outcomes = written[len(others) :]
        fenced = [isinstance(outcome, FencedError) for outcome in written]
        assert all(fenced) or not any(fenced), "a batch is fenced as a whole"
        for outcome in written[: len(others)]:
            kept = isinstance(outcome, CommitReceipt | FencedError)
            assert kept, "a refusal fell on another actor of the batch"
        return _Written(_compress(connection), _summarize(connection), outcomes)


def _write(
    setting: _Setting, world: StoreWorld, index: int, count: int, *, is_told: bool
) -> StoreWorld:
    """Write the oldest ``count`` commits of a process, which hears of it or dies first."""
    process = world.processes[index]
    batch, rest = process.queue[:count], process.queue[count:]
    image, stored, outcomes = _write_batch(setting, world.image, batch)
    accepted = dict(world.accepted)
    acknowledged, fallen_taken = world.acknowledged, world.fallen_taken
    memory, has_fallen = process.memory, False
    for queued, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, CommitReceipt):
            accepted[queued.cause] += 1
            fallen_taken += queued.has_fallen or has_fallen
            acknowledged = max(acknowledged, outcome.version) if is_told else acknowledged
        elif not queued.has_fallen:
            assert isinstance(outcome, KelpieError), "a commit has a receipt or a refusal"
            memory, has_fallen = None, True
    if has_fallen:
        rest = tuple(queued._replace(has_fallen=True) for queued in rest)
    after = replace(
        world,
        image=image,
        stored=stored,
        acknowledged=acknowledged,
        accepted=tuple((cause, accepted[cause]) for cause in CAUSES),
        fallen_taken=fallen_taken,
    )
    told = replace(process, queue=rest, memory=memory)
    return after.with_process(index, told if is_told else Process())


def _actions(setting: _Setting, world: StoreWorld) -> Iterable[Action]:
    for index, process in enumerate(world.processes):
        name = f"process {index + 1}"
        if not process.epoch:
            yield Action("open", f"{name} takes the store over", partial(_take, world, index))
            continue
        yield Action("die", f"{name} dies", partial(world.with_process, index, Process()))
        if process.memory is None:
            yield Action("load", f"{name} loads the actor", partial(_load, world, index))
        if not process.is_new:
            text = f"{name} looks the key up"
            yield Action("look up", text, partial(_look_up, world, index))
        yield from _turn_actions(setting, world, index, name)
        for count in sorted({1, len(process.queue)} if process.queue else ()):
            for is_told in (True, False):
                end = "" if is_told else ", and dies before it hears of it"
                what = "a commit" if count == 1 else f"{count} commits together"
                write = partial(_write, setting, world, index, count, is_told=is_told)
                kind = "write" if is_told else "write unheard"
                yield Action(kind, f"{name} writes {what}{end}", write)


def _turn_actions(setting: _Setting, world: StoreWorld, index: int, name: str) -> Iterable[Action]:
    process = world.processes[index]
    if process.memory is None:
        return
    under_way = {queued.cause for queued in process.queue}
    # A call may run ahead of a last commit, so that there is something to fall with it.
    is_last = process.memory.version == VERSION_MAX and bool(under_way)
    causes = setting.causes if process.memory.version < VERSION_MAX else ()
    for cause in ("call",) if is_last else causes:
        if cause not in under_way and (cause != "key" or process.is_new):
            text = f"{name} runs a turn for a {cause}"
            yield Action(f"turn: {cause}", text, partial(_turn, world, index, cause))


# --- laws ---------------------------------------------------------------------------------------


def _owner_has_what_is_stored(world: StoreWorld) -> str | None:
    """One effective writer: whoever owns the store may answer from memory."""
    stored = Memory(world.stored.version, world.stored.total)
    for number, process in enumerate(world.processes, start=1):
        under_way = any(not queued.has_fallen for queued in process.queue)
        is_owner = process.epoch == world.stored.epoch and not under_way
        if is_owner and process.memory not in {None, stored}:
            return f"process {number} owns the store and has {process.memory}, not {stored}"
    return None


def _nothing_is_lost(world: StoreWorld) -> str | None:
    stored = world.stored
    if world.fallen_taken:
        return "a turn was taken after its caller had been told to try again"
    accepted = sum(count for _, count in world.accepted)
    if stored.version < world.acknowledged:
        return f"version {world.acknowledged} was acknowledged, {stored.version} is stored"
    if not stored.version == stored.total == accepted:
        return f"{accepted} turns were taken, and the total is {stored.total} at {stored.version}"
    return None


def _once_is_once(world: StoreWorld) -> str | None:
    is_done = {"message": not world.stored.has_message, "key": world.stored.has_reply}
    for cause, count in world.accepted:
        is_over = is_done.get(cause, bool(count))
        if cause == "call":
            continue
        if count > 1:
            return f"the turn for the {cause} happened {count} times"
        if is_over != bool(count):
            return f"the {cause} counts as {'done' if is_over else 'open'} after {count} turns"
    return None


def _one_session(world: StoreWorld) -> str | None:
    count = world.stored.sessions_open
    return None if count == 1 else f"{count} sessions are open"


def _epochs_grow(before: StoreWorld, _: str, after: StoreWorld) -> str | None:
    if after.stored.epoch < before.stored.epoch:
        return f"the epoch fell from {before.stored.epoch} to {after.stored.epoch}"
    return None


# --- the model ----------------------------------------------------------------------------------


def _canonical(world: StoreWorld) -> Any:
    """Return the world without the processes' names and the epochs' numbers."""
    epoch = world.stored.epoch

    def relative(process: Process) -> tuple[Any, ...]:
        return (
            bool(process.epoch),
            process.epoch == epoch,
            process.memory or (-1, -1),
            tuple(queued._replace(epoch=0) for queued in process.queue),
            process.is_new,
        )

    return (
        world.stored._replace(epoch=0),
        world.acknowledged,
        world.accepted,
        world.fallen_taken,
        tuple(sorted(map(relative, world.processes))),
    )


def _describe(world: StoreWorld) -> str:
    stored = world.stored
    counts = ", ".join(f"{count} for {cause}" for cause, count in world.accepted)
    return f"stored: version {stored.version}, total {stored.total}; turns taken: {counts}"


def commit_model(
    *,
    submit: Submit = submit_as_shipped,
    causes: tuple[Cause, ...] = CAUSES,
    bystanders: int = 0,
) -> Model[StoreWorld]:
    """Return two processes on one store, up to ``VERSION_MAX`` turns of one actor.

    With ``bystanders`` every batch carries that many commits of other actors, which makes batches
    large enough to be written statement by statement instead of commit by commit.
    """
    setting = _Setting(submit, causes, bystanders)
    return Model(
        name="two processes on one store",
        initial=[_first_image()],
        actions=lambda world: _actions(setting, world),
        canonical=_canonical,
        laws=[
            Law("the owner has what is stored", _owner_has_what_is_stored),
            Law("nothing acknowledged is lost", _nothing_is_lost),
            Law("what must happen once happens once", _once_is_once),
            Law("one session is open", _one_session),
        ],
        step_laws=[StepLaw("epochs only grow", _epochs_grow)],
        is_goal=lambda world: (
            world.stored.version >= VERSION_MAX
            or all(dict(world.accepted)[cause] for cause in causes)
        ),
        describe=_describe,
    )
