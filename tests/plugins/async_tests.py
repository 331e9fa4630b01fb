"""Async tests run by themselves, each on a loop of its own, under a deadline, and leave no task."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ASYNC_DEADLINE_S = 30.0


async def run_within(
    deadline_s: float, test: Callable[..., Awaitable[None]], arguments: dict[str, Any]
) -> None:
    """Awaits `test(**arguments)` and fails if it is late or leaves a task behind."""
    before = asyncio.all_tasks()
    async with asyncio.timeout(deadline_s):
        await test(**arguments)
    # One turn of the loop, so that a task which has just been cancelled can end.
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before if not task.done()]
    assert not left, f"the test left tasks running: {left}"


def make_runner(test: Callable[..., Awaitable[None]], *, deadline_s: float) -> Callable[..., None]:
    """Wraps an async test so that a synchronous caller, hypothesis included, can run it."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        asyncio.run(run_within(deadline_s, test, arguments))

    return run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs `async def` tests on a fresh event loop each; leaves the others to pytest."""
    test = pyfuncitem.obj
    marker = pyfuncitem.get_closest_marker("deadline")
    deadline_s = float(marker.args[0]) if marker else ASYNC_DEADLINE_S
    hypothesis = getattr(test, "hypothesis", None)
    if hypothesis and inspect.iscoroutinefunction(hypothesis.inner_test):
        hypothesis.inner_test = make_runner(hypothesis.inner_test, deadline_s=deadline_s)
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    make_runner(test, deadline_s=deadline_s)(**arguments)
    return True
