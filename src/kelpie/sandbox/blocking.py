"""Blocking work off the event loop, carried to its end even when its caller is cancelled."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


async def run_to_end(
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Run ``work`` in a thread and return its result; a cancellation waits until it has ended.

    A thread cannot be stopped: leaving it behind would let it touch what its caller cleans up.

    Raises:
        CancelledError: The caller was cancelled meanwhile; ``work`` is over.
    """
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, functools.partial(work, *args, **kwargs))
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        future.exception()  # retrieved, so that nobody reports it as forgotten
        raise asyncio.CancelledError
    return future.result()
