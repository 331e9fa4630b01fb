"""Session leases, ownership of a shard, and the life of nodes: the shipped machine and statements.

Two nodes run `kelpie.cluster.membership.decide`; what they ask of the store is done by the members
of transactions in `kelpie.storage.sqlite.nodes`. Around them: a clock for each, which may drift, a
network that cuts a node off and lets its requests arrive late, answers that get lost, processes
that die and come back, and operators. The laws look at what a node may answer and at which writes
the store took, not at what anybody believes.

Time is counted in ticks and kept relative in what tells states apart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple

from kelpie.cluster import commands as c
from kelpie.cluster import events as e
from kelpie.cluster.member import NS_PER_MS, Member, Timing
from kelpie.cluster.membership import decide, wake_ns
from kelpie.core.errors import ConflictError, KelpieError, SessionEndedError
from kelpie.sim.explore import Action, Law, Model, StepLaw
from kelpie.sim.models.tables import ClusterTables, Stored
from kelpie.storage.cluster import NodeRow
from kelpie.storage.sqlite import nodes as rows
from kelpie.storage.sqlite.transaction import Transaction

SHARD: Final = 0
NAMES: Final = ("a", "b")
TICK_NS: Final = NS_PER_MS
TIMING: Final = Timing(
    ttl_ns=4 * TICK_NS, margin_parts=4, renew_ns=TICK_NS, retry_ns=TICK_NS, moves_max=1
)
"""A margin is a tick, so that clocks that drift apart by one tick are within what is allowed."""

SETTLING_TICKS: Final = 8

Trouble = str
TROUBLES: Final = ("cut", "drift", "lost answer", "slow answer", "crash", "leave")

Fence = Callable[[Transaction, int, int], None]
"""What the store makes of a commit to a shard under an epoch: returns, or refuses."""

Statements = Mapping[type[Any], Callable[..., Any]]
"""Members of transactions that take the place of the shipped ones, by command."""


_SHIPPED: Final[Statements] = {
    c.Join: rows.join,
    c.Renew: rows.renew,
    c.WriteState: rows.set_state,
    c.Claim: rows.claim,
    c.Release: rows.release,
    c.End: rows.end,
}


class Asked(NamedTuple):
    """An operation on its way to the store."""

    command: c.LeaseCommand | c.ShardsCommand
    sent_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHost:
    """One machine: its clock, and the process on it.

    Attributes:
        member: The process' membership; None while no process runs.
        clock_ns: The boot clock.
        asked: What is on its way to the store.
        slow: Operations on the lease that were done, and whose answers are on their way back.
        resting: Shards that are being brought to rest.
        is_cut: Whether nothing arrives.
        sessions: How many sessions it ever began.
    """

    member: Member | None
    clock_ns: int = 0
    asked: tuple[Asked, ...] = ()
    slow: tuple[Asked, ...] = ()
    resting: frozenset[int] = frozenset()
    is_cut: bool = False
    sessions: int = 0

    @property
    def epoch(self) -> int:
        """The epoch under which the process believes to own the shard; 0 if it does not."""
        return self.member.owned.get(SHARD, 0) if self.member else 0

    @property
    def answers(self) -> bool:
        """Whether it would answer for the shard now."""
        return self.epoch > 0 and self.member is not None and self.member.may_answer(self.clock_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesWorld:
    """Two hosts and the store.

    Attributes:
        hosts: The machines.
        stored: The store's tables.
        late: Operations that somebody gave up waiting for and that may still arrive.
        written: The epoch of the newest write that the store took.
        left: Which troubles may still happen.
    """

    hosts: tuple[NodeHost, ...]
    stored: Stored
    late: tuple[Asked, ...] = ()
    written: int = 0
    left: frozenset[Trouble] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What a model is made of; ``done`` remembers what an operation makes of what is stored."""

    tables: ClusterTables
    timing: Timing
    fence: Fence
    decide: Callable[[Member, e.Event], Any]
    statements: Statements
    sessions_max: int = 2
    done: dict[Any, tuple[Stored, Any]] = field(default_factory=dict[Any, tuple[Stored, Any]])

    def tell(self, world: NodesWorld, index: int, event: e.Event) -> NodesWorld:
        """Give a process an event, and carry out what is its own business."""
        host = world.hosts[index]
        assert host.member is not None, "a process runs"
        decision = self.decide(host.member, event)
        host = replace(host, member=decision.state)
        for command in decision.commands:
            match command:
                case c.Join() | c.Renew() | c.WriteState() | c.Survey() | c.Claim():
                    host = replace(host, asked=(*host.asked, Asked(command, host.clock_ns)))
                case c.Release() | c.End():
                    host = replace(host, asked=(*host.asked, Asked(command, host.clock_ns)))
                case c.HandOver():
                    host = replace(host, resting=command.shards)
                case c.Begin():
                    return self._begin(_with(world, index, host), index)
                case c.Refuse() | c.Stop():
                    host = replace(host, member=None, asked=(), slow=(), resting=frozenset())
                case _:
                    pass
        return _with(world, index, host)

    def start(self, world: NodesWorld, index: int) -> NodesWorld:
        """Start a process that is ready to serve."""
        host = world.hosts[index]
        assert host.member is None, "one process at a time"
        member = Member(name=NAMES[index], timing=self.timing, is_ready=True)
        return self._begin(_with(world, index, replace(host, member=member)), index)

    def _begin(self, world: NodesWorld, index: int) -> NodesWorld:
        host = world.hosts[index]
        name = f"{NAMES[index]}{host.sessions + 1}"
        world = _with(world, index, replace(host, sessions=host.sessions + 1))
        return self.tell(world, index, e.Began(host.clock_ns, name))

    def reach(self, world: NodesWorld, asked: Asked) -> tuple[NodesWorld, Any]:
        """Let an operation reach the store; return the world after it and the answer."""
        assert asked.command.session, "a session asks"
        key = (world.stored, type(asked.command), asked.command)
        done = self.done.get(key)
        if done is None:
            self.tables.restore(world.stored)
            if isinstance(asked.command, c.Survey):
                answer: Any = self.tables.view()
            else:
                answer = self.tables.run(self._member(asked.command))
            done = self.done[key] = (self.tables.save(), answer)
        assert len(done[0].shards) == len(world.stored.shards), "no shard comes or goes"
        return replace(world, stored=done[0]), done[1]

    def _member(self, command: c.LeaseCommand | c.ShardsCommand) -> Callable[[Transaction], Any]:
        kind = type(command)
        member = self.statements.get(kind, _SHIPPED[kind])
        match command:
            case c.Join():
                return partial(member, node=self._row(command.session))
            case c.WriteState():
                return partial(member, session=command.session, state=command.state)
            case c.Claim() | c.Release():
                return partial(member, session=command.session, shards=command.shards)
            case c.End():
                seen = command.renewals
                return partial(member, session=command.other, renewals=seen, now_ms=1)
            case _:
                return partial(member, session=command.session)

    def _row(self, session: str) -> NodeRow:
        ttl_ms = self.timing.ttl_ns // NS_PER_MS
        name = session[0]
        flags = {"is_cordoned": False, "is_draining": False}
        return NodeRow(
            session, name, name, "initializing", 0, ttl_ms, **flags, started_ms=1, ended_ms=0
        )

    def answer(self, world: NodesWorld, index: int, asked: Asked) -> NodesWorld:
        """Let an operation reach the store, and its answer the process."""
        world, answer = self.reach(_taken(world, index, asked), asked)
        now_ns = world.hosts[index].clock_ns
        return self.tell(world, index, _event(asked, answer, now_ns))

    def give_up(self, world: NodesWorld, index: int, asked: Asked, *, arrives: str) -> NodesWorld:
        """Let a process give up waiting; what it asked for ``arrives`` now, later or never."""
        world = _taken(world, index, asked)
        if arrives == "now":
            world, _ = self.reach(world, asked)
        elif arrives == "later":
            world = replace(world, late=(*world.late, asked))
        now_ns, session = world.hosts[index].clock_ns, asked.command.session
        failed = e.LeaseFailed if _is_of_lease(asked) else e.ShardsFailed
        return self.tell(world, index, failed(now_ns, session))

    def be_slow(self, world: NodesWorld, index: int, asked: Asked) -> NodesWorld:
        """Let a renewal reach the store, and its answer wait."""
        world, answer = self.reach(_taken(world, index, asked), asked)
        assert not isinstance(answer, KelpieError), "who is not cut off has a living session"
        return _with(world, index, replace(world.hosts[index], slow=(asked,)))

    def arrive(self, world: NodesWorld, asked: Asked) -> NodesWorld:
        """Let something reach the store that nobody waits for any more."""
        world = replace(world, late=tuple(each for each in world.late if each is not asked))
        return self.reach(world, asked)[0]

    def pass_time(self, world: NodesWorld, indexes: Iterable[int]) -> NodesWorld:
        """Let a tick pass on some clocks, and wake who has to."""
        for index in indexes:
            host = world.hosts[index]
            world = _with(world, index, replace(host, clock_ns=host.clock_ns + TICK_NS))
        for index in indexes:
            for asked in world.hosts[index].asked:
                # Cut off, or it would not be on its way still: the driver waits no longer.
                world = self.give_up(world, index, asked, arrives="never")
            host = world.hosts[index]
            if host.member is not None and wake_ns(host.member) <= host.clock_ns:
                world = self.tell(world, index, e.Woke(host.clock_ns))
        return world

    def write(self, world: NodesWorld, index: int) -> NodesWorld:
        """Let a process commit to the shard that it believes to own."""
        epoch = world.hosts[index].epoch
        self.tables.restore(world.stored)
        refused = self.tables.run(lambda transaction: self.fence(transaction, SHARD, epoch))
        if isinstance(refused, KelpieError):
            fenced = e.Fenced(world.hosts[index].clock_ns, frozenset({SHARD}))
            return self.tell(world, index, fenced)
        return replace(world, written=epoch)


def _with(world: NodesWorld, index: int, host: NodeHost) -> NodesWorld:
    hosts = list(world.hosts)
    hosts[index] = host
    return replace(world, hosts=tuple(hosts))


def _taken(world: NodesWorld, index: int, asked: Asked) -> NodesWorld:
    host = world.hosts[index]
    left = tuple(each for each in host.asked if each is not asked)
    assert len(left) == len(host.asked) - 1, "it was on its way"
    return _with(world, index, replace(host, asked=left))


def _is_of_lease(asked: Asked) -> bool:
    return isinstance(asked.command, c.Join | c.Renew | c.WriteState)


def _event(asked: Asked, answer: Any, now_ns: int) -> e.Event:
    """Return what a process makes of an answer, as `kelpie.cluster.node` does."""
    session, is_of_lease = asked.command.session, _is_of_lease(asked)
    if isinstance(answer, SessionEndedError):
        return (e.LeaseEnded if is_of_lease else e.ShardsEnded)(now_ns, session)
    if isinstance(answer, ConflictError):
        return e.Refused(now_ns, session)
    assert not isinstance(answer, KelpieError), "the store has no other refusals"
    return _lease_event(asked, now_ns) if is_of_lease else _shards_event(asked, answer, now_ns)


def _lease_event(asked: Asked, now_ns: int) -> e.Event:
    command, session = asked.command, asked.command.session
    if isinstance(command, c.WriteState):
        return e.StateWritten(now_ns, session, command.state)
    kind = e.Joined if isinstance(command, c.Join) else e.Renewed
    return kind(now_ns, session, asked.sent_ns)


def _shards_event(asked: Asked, answer: Any, now_ns: int) -> e.Event:
    command, session = asked.command, asked.command.session
    match command:
        case c.Survey():
            return e.Viewed(now_ns, session, answer)
        case c.Claim():
            return e.Claimed(now_ns, session, tuple(answer))
        case c.Release():
            return e.Released(now_ns, session, command.shards)
        case c.End() if command.other != session:
            return e.Ended(now_ns, session, command.other)
        case _:
            return e.ShardsEnded(now_ns, session)


# --- what can happen ----------------------------------------------------------------------------


def _actions(subject: _Subject, world: NodesWorld) -> Iterable[Action]:
    for index, host in enumerate(world.hosts):
        if host.member is None:
            yield from _dead_actions(subject, world, index)
        else:
            yield from _host_actions(subject, world, index)
    for asked in world.late:
        text = f"a late {_words(asked)} reaches the store"
        yield Action("late", text, partial(subject.arrive, world, asked))
    is_quiet = all(host.is_cut or not (host.asked or host.resting) for host in world.hosts)
    if is_quiet:
        everybody = range(len(world.hosts))
        yield Action("tick", "a tick passes", partial(subject.pass_time, world, everybody))
    if is_quiet and "drift" in world.left:
        after = _spent(world, "drift")
        for index, name in enumerate(NAMES):
            text = f"only the clock of {name} ticks"
            yield Action("drift", text, partial(subject.pass_time, after, [index]))


def _spent(world: NodesWorld, trouble: Trouble) -> NodesWorld:
    return replace(world, left=world.left - {trouble})


def _dead_actions(subject: _Subject, world: NodesWorld, index: int) -> Iterable[Action]:
    host = world.hosts[index]
    if host.sessions < subject.sessions_max:
        yield Action("start", f"{NAMES[index]} starts", lambda: subject.start(world, index))


def _host_actions(subject: _Subject, world: NodesWorld, index: int) -> Iterable[Action]:
    host, name = world.hosts[index], NAMES[index]
    for asked in () if host.is_cut else host.asked:
        work = partial(subject.answer, world, index, asked)
        yield Action("ask", f"{name} does a {_words(asked)}", work)
    yield from _lost_actions(subject, world, index)
    if host.resting:
        rested = _with(world, index, replace(host, resting=frozenset()))
        drained = e.Drained(host.clock_ns, host.resting)
        yield Action(
            "rest",
            f"the shard comes to rest at {name}",
            partial(subject.tell, rested, index, drained),
        )
    if host.epoch and not host.is_cut:
        text = f"{name} writes under epoch {host.epoch}"
        yield Action("write", text, partial(subject.write, world, index))
    if host.is_cut:
        healed = _with(world, index, replace(host, is_cut=False))
        yield Action("heal", f"{name} reaches the store again", lambda: healed)
    if "cut" in world.left:
        cut = _with(_spent(world, "cut"), index, replace(host, is_cut=True))
        yield Action("cut", f"{name} is cut off from the store", lambda: cut)
    if "crash" in world.left:
        gone = replace(host, member=None, asked=(), slow=(), resting=frozenset())
        dead = _with(_spent(world, "crash"), index, gone)
        yield Action("crash", f"{name} dies", lambda: dead)
    if "leave" in world.left:
        after = _spent(world, "leave")
        event = e.Left(host.clock_ns)
        yield Action(
            "leave", f"{name} is told to leave", partial(subject.tell, after, index, event)
        )


def _lost_actions(subject: _Subject, world: NodesWorld, index: int) -> Iterable[Action]:
    host, name = world.hosts[index], NAMES[index]
    if "lost answer" in world.left:
        after = _spent(world, "lost answer")
        for asked in host.asked:
            work = partial(subject.give_up, after, index, asked, arrives="now")
            text = f"the answer to {name}'s {_words(asked)} is lost"
            yield Action("lost answer", text, work)
            work = partial(subject.give_up, after, index, asked, arrives="later")
            yield Action("delay", f"{name} gives up a {_words(asked)}, which is only late", work)
    for asked in host.asked if "slow answer" in world.left else ():
        if isinstance(asked.command, c.Renew):
            slow = partial(subject.be_slow, _spent(world, "slow answer"), index, asked)
            yield Action("slow answer", f"the answer to {name}'s renew takes its time", slow)
    for asked in host.slow:
        answered = _with(world, index, replace(host, slow=()))
        event = _lease_event(asked, host.clock_ns)
        text = f"{name} is told of its {_words(asked)}"
        yield Action("told", text, partial(subject.tell, answered, index, event))


def _words(asked: Asked) -> str:
    return type(asked.command).__name__.lower()


def _settle(subject: _Subject, world: NodesWorld) -> NodesWorld:
    """Return the world some ticks after both nodes started, when nothing was in the way."""
    for index in range(len(NAMES)):
        world = subject.start(world, index)
    for _ in range(SETTLING_TICKS):
        while any(host.asked or host.resting for host in world.hosts):
            world = next(iter(_undisturbed(subject, world)))
        world = subject.pass_time(world, range(len(NAMES)))
    assert _is_served(world), "a shard is served when nothing was in the way"
    return world


def _undisturbed(subject: _Subject, world: NodesWorld) -> Iterable[NodesWorld]:
    for index, host in enumerate(world.hosts):
        for asked in host.asked:
            yield subject.answer(world, index, asked)
        if host.resting:
            rested = _with(world, index, replace(host, resting=frozenset()))
            yield subject.tell(rested, index, e.Drained(host.clock_ns, host.resting))


# --- what must hold -----------------------------------------------------------------------------


def _two_answer(world: NodesWorld) -> str | None:
    answering = [NAMES[i] for i, host in enumerate(world.hosts) if host.answers]
    return f"{' and '.join(answering)} answer for the shard" if len(answering) > 1 else None


def _two_own(world: NodesWorld) -> str | None:
    epoch = world.stored.shards[SHARD][1]
    owners = [NAMES[i] for i, host in enumerate(world.hosts) if host.epoch == epoch]
    return f"{' and '.join(owners)} own the shard effectively" if len(owners) > 1 else None


def _ahead(world: NodesWorld) -> str | None:
    epoch = world.stored.shards[SHARD][1]
    ahead = [NAMES[i] for i, host in enumerate(world.hosts) if host.epoch > epoch]
    return f"{ahead[0]} is ahead of the store" if ahead else None


def _went_back(before: NodesWorld, _: str, after: NodesWorld) -> str | None:
    if after.written >= before.written:
        return None
    return f"a write under epoch {after.written} was taken after one under {before.written}"


def _came_back(before: NodesWorld, _: str, after: NodesWorld) -> str | None:
    ended = {row[0] for row in before.stored.sessions if row[2] is not None}
    living = {row[0] for row in after.stored.sessions if row[2] is None}
    back = ended & living
    return f"session {min(back)} lives again" if back else None


def _is_served(world: NodesWorld) -> bool:
    epoch = world.stored.shards[SHARD][1]
    return any(host.answers and host.epoch == epoch for host in world.hosts)


# --- what tells states apart --------------------------------------------------------------------


def _canonical(world: NodesWorld) -> Hashable:
    """Return a world without absolute time, and with epochs and counters as differences."""
    stored = {row[0]: row for row in world.stored.sessions}
    renewals = {name: row[6] for name, row in stored.items()}
    epoch = world.stored.shards[SHARD][1]
    sessions = tuple((row[0], row[2] is None, row[5]) for row in world.stored.sessions)
    hosts = tuple(_canonical_host(host, epoch, renewals) for host in world.hosts)
    late = tuple(_canonical_asked(asked, epoch, renewals, 0) for asked in world.late)
    written = min(epoch - world.written, 2)
    return (hosts, sessions, world.stored.shards[SHARD][2], late, written, world.left)


def _canonical_asked(asked: Asked, epoch: int, renewals: dict[str, int], now_ns: int) -> Hashable:
    command = asked.command
    detail: Hashable = ()
    match command:
        case c.Claim() | c.Release():
            detail = tuple((shard, epoch - seen) for shard, seen in command.shards)
        case c.End():
            seen = command.renewals
            detail = (command.other, seen is None or renewals[command.other] == seen)
        case c.WriteState():
            detail = command.state
        case _:
            pass
    age_ns = min(now_ns - asked.sent_ns, 2 * TIMING.ttl_ns) if now_ns else 0
    return (type(command).__name__, command.session, detail, age_ns if _is_of_lease(asked) else 0)


def _canonical_host(host: NodeHost, epoch: int, renewals: dict[str, int]) -> Hashable:
    now_ns, member = host.clock_ns, host.member
    asked = tuple(_canonical_asked(each, epoch, renewals, now_ns) for each in host.asked)
    slow = tuple(_canonical_asked(each, epoch, renewals, now_ns) for each in host.slow)
    outside = (asked, slow, host.resting, host.is_cut, host.sessions)
    if member is None:
        return outside
    most_ns = 3 * TIMING.ttl_ns
    sightings = tuple(
        (name, renewals.get(name, 0) == seen.renewals, min(now_ns - seen.since_ns, most_ns))
        for name, seen in sorted(member.sightings.items())
    )
    view = (
        tuple((n.session, n.state, bool(n.ended_ms)) for n in member.view.nodes),
        tuple((row.session, epoch - row.epoch) for row in member.view.shards),
    )
    times = (
        max(member.until_ns - now_ns, 0),
        *(
            max(at - now_ns, 0)
            for at in (member.renew_at_ns, member.look_at_ns, member.shards_at_ns)
        ),
        min(now_ns - member.looked_ns, most_ns),
        tuple(min(now_ns - at, most_ns) for at in member.free.values()),
    )
    flags = (
        *(member.phase, member.written, member.session, member.is_joined, member.is_leaving),
        *(member.is_refused, member.is_renewing, member.is_busy, member.handing, member.surplus),
    )
    shards = (
        tuple(epoch - each for each in member.owned.values()),
        tuple(epoch - each for each in member.releasing.values()),
        tuple(epoch - grant.epoch for grant in member.claimable),
    )
    return (outside, sightings, view, times, flags, shards)


def require_epoch(transaction: Transaction, shard: int, epoch: int) -> None:
    """Refuse a commit under another epoch, as the store does."""
    transaction.require_epoch(shard, epoch)


def nodes_model(
    troubles: Iterable[Trouble],
    *,
    timing: Timing = TIMING,
    fence: Fence = require_epoch,
    decide: Callable[[Member, e.Event], Any] = decide,
    statements: Statements | None = None,
    sessions_max: int = 2,
    is_settled: bool = True,
) -> Model[NodesWorld]:
    """Return the model of two nodes and one shard, with each of ``troubles`` happening once.

    Args:
        troubles: Of `TROUBLES`.
        timing: How long nodes wait.
        fence: The store's check of epochs, for saboteurs.
        decide: The machine, for saboteurs.
        statements: Members of transactions, for saboteurs.
        sessions_max: How many sessions a machine may have begun when it starts another process.
        is_settled: Whether both nodes are members and the shard is served to begin with.
    """
    tables = ClusterTables(sqlite3.connect(":memory:", isolation_level=None), 1)
    subject = _Subject(
        tables=tables,
        timing=timing,
        fence=fence,
        decide=decide,
        statements=statements or {},
        sessions_max=sessions_max,
    )
    first = NodesWorld(
        hosts=(NodeHost(member=None), NodeHost(member=None)),
        stored=tables.save(),
    )
    if is_settled:
        first = _settle(subject, first)
    first = replace(first, left=frozenset(troubles))
    return Model(
        name="two nodes and a shard",
        initial=[first],
        actions=partial(_actions, subject),
        canonical=_canonical,
        laws=[
            Law("one node answers", _two_answer),
            Law("one effective owner", _two_own),
            Law("epochs come from the store", _ahead),
        ],
        step_laws=[
            StepLaw("epochs of writes never go back", _went_back),
            StepLaw("an ended session never lives again", _came_back),
        ],
        is_goal=_is_served,
        describe=_describe,
    )


def _describe(world: NodesWorld) -> str:
    _, epoch, session, _ = world.stored.shards[SHARD]
    believed = ", ".join(
        f"{NAMES[i]} {'answers' if h.answers else 'is silent'} under epoch {h.epoch}"
        for i, h in enumerate(world.hosts)
    )
    return f"stored: epoch {epoch} of {session or 'nobody'}; {believed}"
