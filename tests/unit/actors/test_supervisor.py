"""The owner of background tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from kelpie.actors.supervisor import RESTART_DELAY_S_MIN, Supervisor
from kelpie.core.errors import DrainingError
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
