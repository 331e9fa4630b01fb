"""The runtime over a real SQLite store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kelpie.actors.engine import CommitListener, Engine
from kelpie.actors.hub import EventHub
from kelpie.actors.outbox import OutboxPump
from kelpie.actors.ownership import Ownership
from kelpie.actors.pump import PumpDeps
from kelpie.actors.reminders import ReminderPump
from kelpie.actors.supervisor import Supervisor
from kelpie.core.errors import (
    ActorFailedError,
    CommitUnknownError,
    ConflictError,
    DeadlineError,
    DiskFullError,
    DrainingError,
    FencedError,
    KeyReusedError,
    NotFoundError,
    NotOwnerError,
    VersionConflictError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.host.clock import HostClock
from kelpie.host.rng import HostRng
from kelpie.ports.faults import faults_from
from kelpie.sim.telemetry import RecordedTelemetry
from kelpie.storage.records import Commit, CommitReceipt
from kelpie.storage.sqlite.store import SqliteStore
from tests.integration.actors.counter import (
    Add,
    Break,
    CounterMachine,
    CounterState,
    Forward,
    Later,
    PassOn,
    Remove,
    Show,
    counter,
)
from tests.integration.failing import Failing
from tests.waiting import eventually_async

pytestmark = pytest.mark.requirement("ACTOR-OUTPUT-GATE")


class GatedStore:
    """The real store, with a gate that a test closes between a commit and its durability."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse_next: Exception | None = None
        self.unwritten: list[asyncio.Future[CommitReceipt]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def hold(self) -> None:
        """Keep commits from the disk: nothing of them is written."""
        self.unwritten = []

    def die(self) -> None:
        """Let go of the store as a dying process does."""
        self._store.abandon()
        for outcome in self.unwritten or ():
            outcome.cancel()

    def lose_the_lock(self) -> None:
        """Let another process take the store while this one goes on, as after a long pause."""
        opened = self._store._opened
        assert opened is not None
        assert opened.lock is not None
        opened.lock.release()

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        if self.unwritten is not None:
            outcome: asyncio.Future[CommitReceipt] = asyncio.get_running_loop().create_future()
            self.unwritten.append(outcome)
            return outcome
        if self.refuse_next is not None:
            error, self.refuse_next = self.refuse_next, None
            return asyncio.ensure_future(self._refuse(error))
        return asyncio.ensure_future(self._pass(self._store.commit(commit)))

    async def _refuse(self, error: Exception) -> CommitReceipt:
        raise error

    async def _pass(self, durable: Awaitable[CommitReceipt]) -> CommitReceipt:
        receipt = await durable
        await self.gate.wait()
        return receipt


@dataclass
class Node:
    store: GatedStore
    runtime: Engine
    telemetry: RecordedTelemetry
    supervisor: Supervisor
    outbox: OutboxPump

    async def add(self, name: str, amount: int = 1, label: str = "", **options: Any) -> Any:
        return await self.runtime.call(
            counter(name), Add(amount, label), principal="test", **options
        )

    async def show(self, key: str) -> CounterState:
        state = await self.runtime.query(counter(key), Show())
        assert isinstance(state, CounterState)
        return state

    async def tell(self, key: str, message: Any) -> Any:
        return await self.runtime.call(counter(key), message, principal="test")


@asynccontextmanager
async def run_node(
    path: Path, *, resident_max: int = 1_000, pumps: bool = True, hosts: bool = True
) -> AsyncIterator[Node]:
    clock, rng, telemetry = HostClock(), HostRng(), RecordedTelemetry()
    store = GatedStore(await SqliteStore.open(path / "kelpie.db", clock=clock, rng=rng))
    supervisor = Supervisor(clock=clock, telemetry=telemetry)
    runtime = Engine(
        store=store,
        ownership=Ownership(store.grants()),
        clock=clock,
        rng=rng,
        telemetry=telemetry,
        supervisor=supervisor,
        resident_max=resident_max,
    )
    if hosts:
        runtime.register(CounterMachine())
    deps = PumpDeps(
        store=store, runtime=runtime, clock=clock, telemetry=telemetry, supervisor=supervisor
    )
    outbox, reminders = OutboxPump(deps), ReminderPump(deps)
    if pumps:
        outbox.start()
        reminders.start()
    try:
        yield Node(store, runtime, telemetry, supervisor, outbox)
    finally:
        store.gate.set()
        await runtime.drain()
        await supervisor.close()
        await store.close()


async def a_while() -> None:
    """Let everything that is ready run, over and over."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.requirement("STORE-DURABLE")
async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        assert await node.add("a", 2) == 2
        assert await node.add("a", 3) == 5
    async with run_node(tmp_path) as node:
        assert (await node.show("a")).total == 5
        assert await node.add("a") == 6


@pytest.mark.requirement("K-23")
async def test_a_reply_waits_until_its_commit_is_durable(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a")
        node.store.gate.clear()
        async with asyncio.TaskGroup() as group:
            call = group.create_task(node.add("a"))
            query = group.create_task(node.show("a"))
            await a_while()
            assert not call.done()
            assert not query.done(), "the query read a version that is not durable"
            node.store.gate.set()
        assert call.result() == 2
        assert query.result().total == 2


async def test_a_process_that_dies_between_a_turn_and_its_fsync_has_told_nobody(
    tmp_path: Path,
) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a", 1)
        told: list[Commit] = []
        node.runtime.listen(lambda commit, _: told.append(commit))
        node.store.hold()
        calls = [
            asyncio.ensure_future(work)
            for work in (
                node.add("a", 10),
                node.add("a", 10, key="k"),
                node.show("a"),
                node.tell("a", PassOn("b", ("x",))),
            )
        ]
        await a_while()
        inspection = node.runtime.inspect(counter("a"))
        assert inspection.version - inspection.durable_version == 3, "the turns have run"
        assert not any(call.done() for call in calls), "what read them waits for the disk"
        assert not told
        node.store.die()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, CommitUnknownError | VersionConflictError) for end in ends)
    async with run_node(tmp_path) as node:
        assert (await node.show("a")).total == 1
        assert (await node.show("b")).seen == ()
        assert await node.add("a", 10, key="k") == 11


@pytest.mark.requirement("ACTOR-ONE-EFFECTIVE", "K-13")
async def test_of_two_processes_that_host_an_actor_only_the_owner_has_any_effect(
    tmp_path: Path,
) -> None:
    async with run_node(tmp_path) as zombie:
        assert await zombie.add("a", 1) == 1
        zombie.store.lose_the_lock()
        told: list[Commit] = []
        zombie.runtime.listen(lambda commit, _: told.append(commit))
        async with run_node(tmp_path) as owner:
            assert await owner.add("a", 10) == 11
            ends = await asyncio.gather(
                zombie.add("a", 100),
                zombie.add("c", 100, key="k"),
                zombie.tell("b", PassOn("b", ("x",))),
                zombie.tell("b", Later(0, "never")),
                return_exceptions=True,
            )
            assert all(isinstance(end, NotOwnerError) for end in ends)
            assert isinstance(ends[0], NotOwnerError)
            assert isinstance(ends[0].__cause__, FencedError), (
                "the turn ran, its commit was refused"
            )
            assert not told
            assert await owner.add("a", 10) == 21
            stats = await owner.store.stats()
            assert (stats.actors, stats.outbox, stats.reminders) == (1, 0, 0)
            assert (await owner.show("b")).seen == ()
            with pytest.raises(NotOwnerError, match="ask its owner"):
                await zombie.show("a")
            assert zombie.runtime.resident_count == 0, "what it had in memory is gone"
        zombie.store.die()


@pytest.mark.requirement("K-10")
async def test_turns_pipeline_past_the_disk_and_keep_their_order(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(node.add("a", 1, f"{i}")) for i in range(200)]
        assert [call.result() for call in calls] == list(range(1, 201))
        assert (await node.show("a")).seen == tuple(str(i) for i in range(200))
        node.runtime.check_invariants()


async def test_a_refused_message_changes_nothing_and_tells_why(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a")
        with pytest.raises(ConflictError, match="refused"):
            await node.tell("a", Break())
        assert (await node.show("a")).total == 1


@pytest.mark.requirement("ACTOR-FAILURE-CONTAINED")
async def test_a_bug_in_a_machine_fails_its_caller_alone(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a")
        with pytest.raises(ActorFailedError, match="a bug"):
            await node.tell("a", Break(refuse=False))
        assert await node.add("a") == 2
        assert await node.add("b") == 1


async def test_a_refused_commit_discards_the_activation_and_its_later_turns(
    tmp_path: Path,
) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a")
        node.store.refuse_next = DiskFullError("no space left")
        results = await asyncio.gather(
            node.add("a"), node.add("a"), node.show("a"), return_exceptions=True
        )
        assert isinstance(results[0], DiskFullError)
        assert all(isinstance(each, VersionConflictError) for each in results[1:])
        assert (await node.show("a")).total == 1
        assert await node.add("a") == 2


@pytest.mark.requirement("ACTOR-IDEMPOTENCY-KEY")
async def test_an_idempotency_key_gives_one_turn_and_one_reply(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        results = await asyncio.gather(*(node.add("a", 5, key="k1") for _ in range(10)))
        assert results == [5] * 10
        assert (await node.show("a")).total == 5
        with pytest.raises(KeyReusedError):
            await node.add("a", 6, key="k1")
        assert await node.add("b", 7, key="k1") == 7
    async with run_node(tmp_path) as node:
        assert await node.add("a", 5, key="k1") == 5
        assert (await node.show("a")).total == 5


async def test_a_failed_keyed_call_may_be_tried_again(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        node.store.refuse_next = DiskFullError("no space left")
        with pytest.raises(DiskFullError):
            await node.add("a", 5, key="k1")
        assert await node.add("a", 5, key="k1") == 5


@pytest.mark.requirement("ACTOR-MESSAGE-ONCE")
async def test_messages_arrive_once_each_and_in_order(tmp_path: Path) -> None:
    labels = tuple(str(i) for i in range(50))
    async with run_node(tmp_path) as node:
        await node.tell("a", PassOn("b", labels))

        async def arrived() -> bool:
            return (await node.show("b")).total == 50

        await eventually_async(arrived, within_s=5, what="50 messages arrive")
        assert (await node.show("b")).seen == labels
        assert (await node.store.stats()).outbox == 0


async def test_a_message_to_a_refusing_actor_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        await node.tell("a", Forward("b"))
        await node.tell("a", PassOn("b", ("after",)))

        async def dead() -> bool:
            return bool(await node.store.dead_letters(TENANT_DEFAULT, 10))

        await eventually_async(dead, within_s=5, what="the message dies")
        (letter,) = await node.store.dead_letters(TENANT_DEFAULT, 10)
        assert "refused" in letter.error

        async def after() -> bool:
            return (await node.show("b")).seen == ("after",)

        await eventually_async(after, within_s=5, what="the lane goes on")


def arming(source: Failing) -> CommitListener:
    """Arm the source when a message has become durable: what fails is what follows."""

    def arm(_: Commit, receipt: CommitReceipt) -> None:
        source.is_armed = source.is_armed or bool(receipt.message_ids)

    return arm


async def test_a_lane_goes_on_when_a_failed_delivery_could_not_be_counted(tmp_path: Path) -> None:
    source = Failing("storage.write_fail", is_armed=False)
    with faults_from(source):
        async with run_node(tmp_path) as node:
            node.runtime.listen(arming(source))
            await node.tell("a", Forward("b"))

            async def dead() -> bool:
                return bool(await node.store.dead_letters(TENANT_DEFAULT, 10))

            await eventually_async(dead, within_s=20, what="the message dies")
            await node.tell("a", PassOn("b", ("after",)))

            async def after() -> bool:
                return (await node.show("b")).seen == ("after",)

            await eventually_async(after, within_s=20, what="the lane goes on")
    assert source.happened == 1


@pytest.mark.requirement("ACTOR-MESSAGE-ONCE")
async def test_a_message_is_delivered_although_the_first_look_for_it_fails(tmp_path: Path) -> None:
    source = Failing("storage.read_fail", is_armed=False)
    with faults_from(source):
        async with run_node(tmp_path) as node:
            await node.show("b")  # in memory, so that the next read is the pump's
            node.runtime.listen(arming(source))
            await node.tell("a", PassOn("b", ("x",)))

            async def arrived() -> bool:
                return (await node.show("b")).seen == ("x",)

            await eventually_async(arrived, within_s=10, what="the message arrives")
    assert source.happened == 1


@pytest.mark.requirement("ACTOR-MESSAGE-ONCE")
async def test_a_message_that_is_delivered_twice_has_one_turn(tmp_path: Path) -> None:
    source = Failing("concurrency.duplicate_delivery", times=3)
    with faults_from(source):
        async with run_node(tmp_path) as node:
            await node.tell("a", PassOn("b", ("x", "y", "z")))

            async def arrived() -> bool:
                try:
                    return (await node.show("b")).seen == ("x", "y", "z")
                except VersionConflictError:  # the second delivery was refused; ask again
                    return False

            await eventually_async(arrived, within_s=10, what="the messages arrive")
            assert (await node.store.stats()).outbox == 0
    assert source.happened == 3


@pytest.mark.requirement("ACTOR-EVICTION")
async def test_actors_that_leave_for_want_of_memory_come_back_as_they_were(tmp_path: Path) -> None:
    source = Failing("resource.out_of_memory", times=100)
    with faults_from(source):
        async with run_node(tmp_path) as node:
            for round_ in range(3):
                for number in range(5):
                    assert await node.add(f"a{number}") == round_ + 1
                    assert node.runtime.resident_count <= 3
    assert source.happened >= 10


@pytest.mark.requirement("K-08")
async def test_what_runs_between_reading_an_actor_and_its_first_turn_changes_nothing(
    tmp_path: Path,
) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a", 1)
    with faults_from(Failing("concurrency.data_race", times=10)):
        async with run_node(tmp_path) as node:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(node.add("a", 1)) for _ in range(20)]
            assert sorted(call.result() for call in calls) == list(range(2, 22))


@pytest.mark.requirement("ACTOR-MESSAGE-ONCE", "K-24")
async def test_messages_left_by_a_dead_process_are_delivered(tmp_path: Path) -> None:
    async with run_node(tmp_path, pumps=False) as node:
        await node.tell("a", PassOn("b", ("x", "y")))
        assert (await node.store.stats()).outbox == 2
    async with run_node(tmp_path) as node:

        async def arrived() -> bool:
            return (await node.show("b")).seen == ("x", "y")

        await eventually_async(arrived, within_s=5, what="old messages arrive")


async def test_a_message_to_a_type_that_this_process_does_not_host_waits_for_one_that_does(
    tmp_path: Path,
) -> None:
    async with run_node(tmp_path, pumps=False) as node:
        await node.tell("a", PassOn("b", ("x",)))
    async with run_node(tmp_path, hosts=False) as node:

        async def noticed() -> bool:
            return any(event == "message.unhosted" for _, event, _ in node.telemetry.logs)

        await eventually_async(noticed, within_s=5, what="the message is seen")
        assert not await node.store.dead_letters(TENANT_DEFAULT, 10)
        assert (await node.store.stats()).outbox == 1
    async with run_node(tmp_path) as node:

        async def arrived() -> bool:
            return (await node.show("b")).seen == ("x",)

        await eventually_async(arrived, within_s=5, what="the message arrives")


@pytest.mark.requirement("ACTOR-REMINDER-SURVIVES")
async def test_reminders_fire_once_they_are_due_and_after_a_restart(tmp_path: Path) -> None:
    now_ms = HostClock().now_ms()
    async with run_node(tmp_path) as node:
        await node.tell("a", Later(now_ms + 50, "soon"))
        await node.tell("a", Later(now_ms + 3_600_000, "much later"))

        async def fired() -> bool:
            return (await node.show("a")).seen == ("soon",)

        await eventually_async(fired, within_s=5, what="the reminder fires")
    async with run_node(tmp_path, pumps=False) as node:
        await node.tell("b", Later(now_ms - 1_000, "missed"))
    async with run_node(tmp_path) as node:

        async def caught_up() -> bool:
            return (await node.show("b")).seen == ("missed",)

        await eventually_async(caught_up, within_s=5, what="the missed reminder fires")
        assert (await node.show("a")).seen == ("soon",)
        assert (await node.store.stats()).reminders == 1


@pytest.mark.requirement("ACTOR-DEADLINE")
async def test_a_deadline_ends_the_wait_and_not_the_turn(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        node.store.gate.clear()
        with pytest.raises(DeadlineError):
            await node.add("a", timeout_ms=30)
        node.store.gate.set()
        assert (await node.show("a")).total == 1


@pytest.mark.requirement("ACTOR-CANCELLED-CALLER")
async def test_a_cancelled_caller_does_not_tear_its_turn(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        node.store.gate.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await node.add("a")
        node.store.gate.set()
        assert (await node.show("a")).total == 1


async def test_a_deleted_actor_begins_a_new_incarnation(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        await node.add("a", 7)
        removed, again = await asyncio.gather(node.tell("a", Remove()), node.add("a"))
        assert removed == "removed"
        assert again == 1
        stored = await node.store.load(counter("a"))
        assert (stored.incarnation, stored.version) == (2, 1)


@pytest.mark.requirement("ACTOR-EVICTION")
async def test_idle_actors_are_evicted_and_come_back_as_they_were(tmp_path: Path) -> None:
    async with run_node(tmp_path, resident_max=3) as node:
        for i in range(10):
            await node.add(f"a{i}", i)
        assert node.runtime.resident_count <= 3
        for i in range(10):
            assert (await node.show(f"a{i}")).total == i


async def test_an_unknown_actor_type_is_named(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        with pytest.raises(NotFoundError, match="no-such"):
            await node.runtime.query(ActorId(TENANT_DEFAULT, "no-such", "a"), Show())


@pytest.mark.requirement("ACTOR-DRAIN", "K-22")
async def test_a_draining_node_refuses_calls_and_settles_what_runs(tmp_path: Path) -> None:
    async with run_node(tmp_path) as node:
        node.store.gate.clear()
        async with asyncio.TaskGroup() as group:
            call = group.create_task(node.add("a"))
            await a_while()
            drained = group.create_task(node.runtime.drain())
            await a_while()
            with pytest.raises(DrainingError):
                await node.add("b")
            assert not drained.done()
            node.store.gate.set()
        assert call.result() == 1


async def test_followers_wake_once_something_is_durable() -> None:
    hub = EventHub()
    with hub.watch(counter("a")) as mine, hub.watch() as everything:
        hub.publish(counter("b"))
        assert not await mine.wait(0.01)
        assert await everything.wait(1)
        hub.publish(counter("a"))
        assert await mine.wait(1)
