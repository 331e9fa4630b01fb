"""Runs a node's membership: asks the store, keeps the time, and tells `Ownership` what follows.

All decisions are those of `membership.decide`. Two queues of store operations are worked off beside
each other, so that a renewal never waits for a slow look; each operation is given up after the time
between two renewals, and what it came to is then unknown. Renewals are timed from when they are
sent.

Never writes anything but sessions and owners, and never answers for the rest of the program.

Invariants: an event is taken as a whole before the next one; what a command asked for is answered
by exactly one event.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from kelpie.actors.ownership import Ownership
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster import commands as c
from kelpie.cluster import events as e
from kelpie.cluster.member import NEVER_NS, NS_PER_MS, Member, timing_of
from kelpie.cluster.membership import decide, wake_ns
from kelpie.cluster.placement import is_name, living
from kelpie.core.errors import ConflictError, InvalidFieldError, KelpieError, SessionEndedError
from kelpie.core.ids import derive_uuid
from kelpie.core.limits import LEASE_TTL_MS
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.storage.cluster import ClusterStore, ClusterView, NodeRow, NodeState

NS_PER_S: Final = 1_000_000_000

HandOver = Callable[[frozenset[int]], Awaitable[None]]
"""Brings shards to rest: returns when no turn of theirs runs or will begin, and no commit of theirs
is on its way. The shards stay owned until then."""


def _hint_nobody(_: frozenset[str]) -> None:
    """Leave it to the others to look for themselves."""


def _ignore(_: str) -> None:
    """Nobody else needs the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Who a node is.

    Attributes:
        name: Unique among living nodes.
        address: Where other nodes reach it, as ``host:port``.
        ttl_ms: How long it may be silent before its shards are another's.
    """

    name: str
    address: str
    ttl_ms: int = LEASE_TTL_MS


class NodeStatus(NamedTuple):
    """What a node says of itself.

    ``is_serving`` is whether its lease lets it answer now; ``shards`` are those that it owns.
    """

    name: str
    session: str
    state: NodeState
    is_serving: bool
    shards: int
    view: ClusterView


class ClusterNode:
    """This process as a member of a cluster. Call `start`, then `ready`, and `leave` at the end."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        store: ClusterStore,
        clock: Clock,
        rng: Rng,
        ownership: Ownership,
        supervisor: Supervisor,
        telemetry: Telemetry,
        hand_over: HandOver,
        hint: Callable[[frozenset[str]], None] = _hint_nobody,
        on_session: Callable[[str], None] = _ignore,
    ) -> None:
        """Make a node that has not started.

        Args:
            config: Who it is.
            store: The cluster's arbiter.
            clock: Boot time for leases, wall time for what people read.
            rng: Makes ids of sessions.
            ownership: Told of every shard gained and lost; owns nothing before.
            supervisor: Runs the background work.
            telemetry: Where membership is reported.
            hand_over: See `HandOver`.
            hint: Tells the nodes at these addresses to call their `look_soon`; may fail silently.
            on_session: Told of each new session's id before the store is.

        Raises:
            InvalidFieldError: The name cannot be a node's.
        """
        if not is_name(config.name):
            text = f"{config.name!r} is no name; use letters, digits, dots, dashes and underscores"
            raise InvalidFieldError("node", text)
        self._config = config
        self._store = store
        self._clock = clock
        self._rng = rng
        self._ownership = ownership
        self._supervisor = supervisor
        self._telemetry = telemetry
        self._bring_to_rest = hand_over
        self._tell = hint
        self._on_session = on_session
        self._member = Member(name=config.name, timing=timing_of(config.ttl_ms))
        self._events: deque[e.Event] = deque()
        self._is_taking = False
        self._is_losing = False
        self._lease: asyncio.Queue[c.LeaseCommand] = asyncio.Queue()
        self._shards: asyncio.Queue[c.ShardsCommand] = asyncio.Queue()
        self._woken = asyncio.Event()
        self._joined = asyncio.Event()
        self._gone = asyncio.Event()
        self._refusal: ConflictError | None = None
        ownership.until_ns = 0
        ownership.listen(lost=self._was_lost)

    @property
    def name(self) -> str:
        """What this node is called."""
        return self._config.name

    @property
    def refusal(self) -> KelpieError | None:
        """Why the cluster does not take this node; None while it does."""
        return self._refusal

    # --- for the program around it --------------------------------------------------------------

    @property
    def status(self) -> NodeStatus:
        """What this node is at now."""
        member = self._member
        return NodeStatus(
            name=member.name,
            session=member.session,
            state=member.phase,
            is_serving=member.may_answer(self._clock.boot_ns()),
            shards=len(member.owned),
            view=member.view,
        )

    async def start(self) -> None:
        """Join the cluster; returns once the store has the session, which then is kept alive.

        A session of a node that had this name and crashed is waited for and ended.

        Raises:
            ConflictError: A living node has this name.
        """
        assert self._member.phase == "stopped", "a node starts once"
        assert not self._gone.is_set(), "a node that left does not come back"
        self._supervisor.keep("cluster.lease", self._work_lease)
        self._supervisor.keep("cluster.shards", self._work_shards)
        self._supervisor.keep("cluster.clock", self._keep_time)
        self._begin()
        await self._joined.wait()
        if self._refusal is not None:
            raise self._refusal

    def ready(self) -> None:
        """Take shards from now on: the rest of the program can serve."""
        self._take(e.Prepared(self._clock.boot_ns()))

    def look_soon(self) -> None:
        """Look at the cluster now, since somebody said that it is worth it."""
        self._take(e.Hinted(self._clock.boot_ns()))

    async def leave(self) -> None:
        """Hand every shard over, end the session, and return; harmless when it has left.

        Cut off from the store, it returns when its lease has run out: then the others take its
        shards without being asked.
        """
        if self._member.phase == "stopped":
            return
        self._take(e.Left(self._clock.boot_ns()))
        await self._gone.wait()
        self.check_invariants()

    async def gone(self) -> None:
        """Return once the node is out of the cluster, whether it left or was refused.

        Raises:
            ConflictError: Another living node has its name.
        """
        await self._gone.wait()
        if self._refusal is not None:
            raise self._refusal

    def check_invariants(self) -> None:
        """Assert what holds between two events."""
        self._member.check_invariants()
        owned = {grant.shard: grant.epoch for grant in self._ownership.grants()}
        assert owned == dict(self._member.owned), "the machine and the program own the same"
        assert self._ownership.until_ns <= self._member.until_ns, "nobody answers for longer"

    # --- events and commands --------------------------------------------------------------------

    def _take(self, event: e.Event) -> None:
        """Take an event, or leave it to whoever is taking one now."""
        self._events.append(event)
        if self._is_taking:
            return
        self._is_taking = True
        try:
            while self._events:
                before = self._member
                self._member, commands = decide(before, self._events.popleft())
                for command in commands:
                    self._carry_out(command)
                self._report(before)
        finally:
            self._is_taking = False
        self._woken.set()

    def _carry_out(self, command: c.Command) -> None:
        match command:
            case c.Join() | c.Renew() | c.WriteState():
                self._lease.put_nowait(command)
            case c.Survey() | c.Claim() | c.Release() | c.End():
                self._shards.put_nowait(command)
            case c.Gain():
                self._ownership.gain(command.grants)
            case c.Lose():
                self._lose(command.shards)
            case c.AnswerUntil():
                self._ownership.until_ns = command.until_ns
            case c.Point():
                self._ownership.point(dict(command.owners))
            case _:
                self._carry_out_rarely(command)

    def _carry_out_rarely(self, command: c.HandOver | c.Hint | c.Begin | c.Refuse | c.Stop) -> None:
        match command:
            case c.HandOver():
                self._supervisor.spawn("cluster.hand_over", self._hand_over(command.shards))
            case c.Hint():
                self._tell(command.addresses)
            case c.Begin():
                self._begin()
            case c.Refuse():
                name = self._config.name
                text = f"a living node is named {name!r}; give this one another name"
                self._refusal = ConflictError(text, name=name)
                self._stop()
            case c.Stop():
                self._stop()

    def _begin(self) -> None:
        session = f"session-{derive_uuid(self._rng.bytes(16), 0)}"
        self._on_session(session)
        self._take(e.Began(self._clock.boot_ns(), session))

    def _stop(self) -> None:
        self._joined.set()
        self._gone.set()

    def _lose(self, shards: frozenset[int]) -> None:
        self._is_losing = True
        try:
            self._ownership.lose(shards)
        finally:
            self._is_losing = False

    def _was_lost(self, shards: frozenset[int]) -> None:
        """Note shards that somebody else gave up, whose commit the store had refused."""
        if not self._is_losing:
            self._take(e.Fenced(self._clock.boot_ns(), shards))

    async def _hand_over(self, shards: frozenset[int]) -> None:
        try:
            await self._bring_to_rest(shards)
        except Exception:
            # Their release raises the epochs, which stops what still moves.
            self._take(e.Drained(self._clock.boot_ns(), shards))
            raise
        self._take(e.Drained(self._clock.boot_ns(), shards))

    # --- time -----------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        while not self._gone.is_set():
            self._woken.clear()
            due_ns = wake_ns(self._member)
            wait_ns = due_ns - self._clock.boot_ns()
            if wait_ns <= 0:
                self._take(e.Woke(self._clock.boot_ns()))
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(None if due_ns == NEVER_NS else wait_ns / NS_PER_S):
                    await self._woken.wait()
            except TimeoutError:
                self._take(e.Woke(self._clock.boot_ns()))

    # --- the store ------------------------------------------------------------------------------

    async def _work_lease(self) -> None:
        while not self._gone.is_set():
            command = await self._lease.get()
            answer: e.Answer
            try:
                async with asyncio.timeout(self._member.timing.renew_ns / NS_PER_S):
                    answer = await self._ask_lease(command)
            except SessionEndedError:
                answer = e.LeaseEnded(self._clock.boot_ns(), command.session)
            except (KelpieError, TimeoutError) as error:
                answer = e.LeaseFailed(self._clock.boot_ns(), command.session)
                self._report_failure(command, error)
            except Exception:
                self._take(e.LeaseFailed(self._clock.boot_ns(), command.session))
                raise
            self._take(answer)

    async def _ask_lease(self, command: c.LeaseCommand) -> e.Answer:
        session = command.session
        sent_ns = self._clock.boot_ns()
        match command:
            case c.Join():
                try:
                    await self._store.join(self._row(session))
                except ConflictError:
                    return e.Refused(self._clock.boot_ns(), session)
                return e.Joined(self._clock.boot_ns(), session, sent_ns)
            case c.Renew():
                await self._store.renew(session)
                return e.Renewed(self._clock.boot_ns(), session, sent_ns)
            case c.WriteState():
                await self._store.set_node_state(session, command.state)
                return e.StateWritten(self._clock.boot_ns(), session, command.state)

    def _row(self, session: str) -> NodeRow:
        config, now_ms = self._config, self._clock.now_ms()
        seen = self._member.view.nodes
        # What an operator marked holds for the node, not for the session that it happened to have.
        before = [node for node in seen if node.name == config.name and node.session != session]
        marked = max(before, key=lambda node: node.started_ms, default=None)
        return NodeRow(
            session=session,
            name=config.name,
            address=config.address,
            state="initializing",
            renewals=0,
            ttl_ms=self._member.timing.ttl_ns // NS_PER_MS,
            is_cordoned=marked is not None and marked.is_cordoned,
            is_draining=marked is not None and marked.is_draining,
            started_ms=now_ms,
            ended_ms=0,
        )

    async def _work_shards(self) -> None:
        while not self._gone.is_set():
            command = await self._shards.get()
            answer: e.Answer
            try:
                async with asyncio.timeout(self._member.timing.renew_ns / NS_PER_S):
                    answer = await self._ask_shards(command)
            except SessionEndedError:
                answer = e.ShardsEnded(self._clock.boot_ns(), command.session)
            except (KelpieError, TimeoutError) as error:
                answer = e.ShardsFailed(self._clock.boot_ns(), command.session)
                self._report_failure(command, error)
            except Exception:
                self._take(e.ShardsFailed(self._clock.boot_ns(), command.session))
                raise
            self._take(answer)

    async def _ask_shards(self, command: c.ShardsCommand) -> e.Answer:
        session = command.session
        match command:
            case c.Survey():
                view = await self._store.cluster()
                return e.Viewed(self._clock.boot_ns(), session, view)
            case c.Claim():
                taken = await self._store.claim(session, command.shards)
                return e.Claimed(self._clock.boot_ns(), session, tuple(taken))
            case c.Release():
                await self._store.release_shards(session, command.shards)
                return e.Released(self._clock.boot_ns(), session, command.shards)
            case c.End():
                return await self._end(command)

    async def _end(self, command: c.End) -> e.Answer:
        now_ms = self._clock.now_ms()
        is_ended = await self._store.end_session(command.other, command.renewals, now_ms=now_ms)
        now_ns = self._clock.boot_ns()
        if command.other == command.session:
            assert is_ended, "its own session a node ends whatever its counter says"
            return e.ShardsEnded(now_ns, command.session)
        if is_ended:
            self._telemetry.count("kelpie.cluster.sessions_ended")
            self._telemetry.log("warning", "cluster.node_ended", session=command.other)
        return e.Ended(now_ns, command.session, command.other)

    # --- what is reported -----------------------------------------------------------------------

    def _report(self, before: Member) -> None:
        after = self._member
        if after.is_joined:
            self._joined.set()
        if before.phase != after.phase or before.session != after.session:
            self._telemetry.log(
                "info", "cluster.state", node=after.name, state=after.phase, session=after.session
            )
        if before.owned is not after.owned and len(before.owned) != len(after.owned):
            self._telemetry.gauge("kelpie.cluster.shards", len(after.owned))
        if before.view is not after.view:
            self._telemetry.gauge("kelpie.cluster.nodes", len(living(after.view)))

    def _report_failure(self, command: c.Command, error: Exception) -> None:
        operation = type(command).__name__.lower()
        self._telemetry.count("kelpie.cluster.failures", operation=operation)
        self._telemetry.log("warning", "cluster.failed", operation=operation, error=repr(error))
