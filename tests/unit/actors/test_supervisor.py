"""The owner of background tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from kelpie.actors.supervisor import CANCELLATIONS_MAX, RESTART_DELAY_S_MIN, Supervisor
from kelpie.core.errors import DrainingError
from kelpie.core.limits import STOP_TIMEOUT_MS
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.telemetry import RecordedTelemetry


class ImpatientClock:
    """Notes how long it was asked to wait, and lets the loop turn once instead."""

    def __init__(self) -> None:
        self.pauses_s: list[float] = []

    def now_ms(self) -> int:
        return 0

    def boot_ns(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        await asyncio.sleep(0)


@pytest.mark.requirement("ACTOR-FAILURE-CONTAINED", "K-18")
async def test_a_kept_task_that_fails_is_reported_and_runs_again() -> None:
    clock, telemetry = ImpatientClock(), RecordedTelemetry()
    supervisor = Supervisor(clock=clock, telemetry=telemetry)
    done = asyncio.Event()
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ZeroDivisionError("a bug")
        done.set()

    supervisor.keep("test.work", work)
    await done.wait()
    await supervisor.close()
    assert runs == 3
    assert clock.pauses_s == [RESTART_DELAY_S_MIN, 2 * RESTART_DELAY_S_MIN]
    assert [(event, fields["restarts"]) for _, event, fields in telemetry.logs] == [
        ("task.failed", True)
    ] * 2


async def test_a_spawned_task_that_fails_is_reported_and_stays_ended() -> None:
    telemetry = RecordedTelemetry()
    supervisor = Supervisor(clock=ImpatientClock(), telemetry=telemetry)

    began = asyncio.Event()

    async def work() -> None:
        began.set()
        raise ZeroDivisionError("a bug")

    supervisor.spawn("test.work:1", work())
    await began.wait()
    await supervisor.close()
    assert telemetry.counts == {"kelpie.task.failures": 1}


async def test_nothing_runs_after_closing() -> None:
    supervisor = Supervisor(clock=ImpatientClock(), telemetry=RecordedTelemetry())
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    supervisor.spawn("test.work", work())
    await began.wait()
    await supervisor.close()
    began.clear()
    supervisor.spawn("test.work", work())
    await asyncio.sleep(0)
    assert (supervisor.task_count, began.is_set()) == (0, False)


async def test_finished_work_outlives_its_caller_and_tells_one_who_stays() -> None:
    telemetry = RecordedTelemetry()
    supervisor = Supervisor(clock=ImpatientClock(), telemetry=telemetry)
    began, gate, steps = asyncio.Event(), asyncio.Event(), []

    async def work(result: int) -> int:
        began.set()
        await gate.wait()
        steps.append(result)
        return 1 // result

    async with asyncio.TaskGroup() as group:
        leaving = group.create_task(supervisor.finish("test.work", work(1)))
        await began.wait()
        leaving.cancel()
        await asyncio.sleep(0)
        gate.set()
    assert await supervisor.finish("test.work", work(1)) == 1
    with pytest.raises(ZeroDivisionError):
        await supervisor.finish("test.work", work(0))
    assert steps == [1, 1, 0]
    assert telemetry.logs == []
    await supervisor.close()


async def test_work_that_cannot_be_finished_any_more_says_that_the_node_stops() -> None:
    supervisor = Supervisor(clock=ImpatientClock(), telemetry=RecordedTelemetry())
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_fails_as_draining(supervisor, work()))
        await began.wait()
        await supervisor.close()
    assert waiting.result()
    assert await _fails_as_draining(supervisor, work())


async def _fails_as_draining(supervisor: Supervisor, work: Coroutine[Any, Any, None]) -> bool:
    with pytest.raises(DrainingError):
        await supervisor.finish("test.work", work)
    return True


async def test_a_task_without_a_name_is_a_programmers_mistake() -> None:
    supervisor = Supervisor(clock=ImpatientClock(), telemetry=RecordedTelemetry())
    work = asyncio.sleep(0)
    with pytest.raises(AssertionError, match="name"):
        supervisor.spawn("", work)
    work.close()


@pytest.mark.requirement("DRAIN-BOUNDED")
def test_a_task_that_swallows_its_cancellation_is_left_and_named() -> None:
    telemetry = RecordedTelemetry()
    cancellations = 0

    async def work() -> None:
        nonlocal cancellations
        while cancellations < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancellations += 1

    async def live() -> tuple[str, ...]:
        supervisor = Supervisor(clock=ImpatientClock(), telemetry=telemetry)
        stubborn = supervisor.spawn("test.stubborn:1", work())
        obedient = supervisor.spawn("test.obedient:1", asyncio.sleep(3600))
        assert stubborn is not None
        assert obedient is not None
        await asyncio.sleep(0)  # both have begun
        assert supervisor.left == ()
        await supervisor.close()
        assert obedient.cancelled()
        left = supervisor.left
        stubborn.cancel()
        await asyncio.wait([stubborn])
        return left

    loop = SimulatedLoop()
    assert loop.run_until_complete(live()) == ("test.stubborn:1",)
    assert loop.now_ns == CANCELLATIONS_MAX * STOP_TIMEOUT_MS * 1_000_000
    assert cancellations == CANCELLATIONS_MAX + 1
    assert [(event, fields["tasks"]) for _, event, fields in telemetry.logs] == [
        ("tasks.left", "test.stubborn:1")
    ]
    loop.close()
