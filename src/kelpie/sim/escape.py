"""The seal of a simulation: what would reach the real world raises, and names who tried.

Real sockets, threads, processes, clocks and entropy raise `EscapedSimulationError` when the product
or a test's own actors ask for them while a run goes on. What the interpreter or the engine needs
inline on real files stays possible: the first caller outside the standard library decides.

Invariants: outside of `sealed` nothing is changed; other threads never notice.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType, ModuleType
from typing import Any, Final

from kelpie.sim.loop import EscapedSimulationError

_FORBIDDEN: Final[tuple[tuple[Any, tuple[str, ...]], ...]] = (
    (
        time,
        (
            *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"),
            *("sleep", "localtime", "gmtime"),
        ),
    ),
    (os, ("urandom", "getrandom", "fork", "forkpty", "system", "popen", "posix_spawn")),
    (
        random,
        (
            *("random", "randint", "randrange", "choice", "choices", "sample", "shuffle"),
            *("uniform", "randbytes", "getrandbits", "gauss", "expovariate", "seed"),
        ),
    ),
    (random.SystemRandom, ("random", "getrandbits")),
    (
        secrets,
        ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice"),
    ),
    (uuid, ("uuid1", "uuid4")),
    (socket, ("create_connection", "create_server", "getaddrinfo", "socketpair")),
    (socket.socket, ("__init__",)),
    (threading.Thread, ("start",)),
    (subprocess.Popen, ("__init__",)),
)
_REAL: Final = tuple(
    (owner, name, vars(owner)[name])
    for owner, names in _FORBIDDEN
    for name in names
    if name in vars(owner)
)
_MOMENTS: Final = ("now", "utcnow")  # `today` asks `time.time`, which is sealed
_copies_by_module: dict[str, tuple[tuple[ModuleType, str, Any], ...]] = {}
# What of the standard library may look at a clock on anybody's behalf: it shows it to people alone.
_HARMLESS: Final = frozenset({"logging", "importlib", "linecache", "warnings", "traceback", "gc"})
# Who may do anything: the test runner around the run, and what measures it.
_OUTSIDERS: Final = frozenset(
    {"_pytest", "pytest", "pluggy", "pytest_timeout", "coverage", "hypothesis"}
)


@contextmanager
def sealed() -> Generator[None]:
    """Let nothing of this thread escape from the simulation until the context ends.

    Not reentrant: there is one world at a time.
    """
    saved: list[tuple[Any, str, Any]] = []
    thread = threading.get_ident()
    guards: dict[int, Any] = {}
    copies = _find_copies()
    try:
        for owner, name, real in _REAL:
            saved.append((owner, name, real))
            guards[id(real)] = _guard(real, _title(owner, name), thread)
            setattr(owner, name, guards[id(real)])
        for module, name, real in copies:
            saved.append((module, name, real))
            setattr(module, name, guards[id(real)])
        _replace(asyncio, asyncio.tasks, "wait", _make_wait(asyncio.wait), saved)
        _replace(
            asyncio,
            asyncio.tasks,
            "as_completed",
            _make_as_completed(asyncio.as_completed),
            saved,
        )
        with _sealed_moments(thread):
            yield
    finally:
        for owner, name, real in reversed(saved):
            setattr(owner, name, real)


@contextmanager
def _sealed_moments(thread: int) -> Generator[None]:
    """Guard the present moment, which is a class's own and nobody's to replace by assignment.

    A stand-in for the class would not be the class that others hold, compare with and decode to;
    so its methods are exchanged where the interpreter keeps them.
    """
    (methods,) = gc.get_referents(vars(datetime))
    real = {name: methods[name] for name in _MOMENTS}
    try:
        for name, method in real.items():
            title = f"datetime.datetime.{name}"
            methods[name] = classmethod(_guard(_bind(method), title, thread))
        _forget_looked_up()
        yield
    finally:
        methods.update(real)
        _forget_looked_up()


def _bind(method: Any) -> Callable[..., Any]:
    def call(kind: type[datetime], *args: Any, **kwargs: Any) -> Any:
        return method.__get__(None, kind)(*args, **kwargs)

    return call


def _forget_looked_up() -> None:
    """Make the interpreter look the class's methods up again."""
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime))


def _find_copies() -> list[tuple[ModuleType, str, Any]]:
    """Return where modules outside the standard library hold a forbidden function by name.

    Each module is looked through once, when it is first seen.
    """
    forbidden = {id(real): real for _, _, real in _REAL}
    for name, module in list(sys.modules.items()):
        if name in _copies_by_module:
            continue
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in _OUTSIDERS:
            _copies_by_module[name] = ()
            continue
        held = [(key, value) for key, value in vars(module).items() if id(value) in forbidden]
        _copies_by_module[name] = tuple((module, key, value) for key, value in held)
    return [copy for copies in _copies_by_module.values() for copy in copies]


def _replace(
    first: ModuleType, second: ModuleType, name: str, value: Any, saved: list[tuple[Any, str, Any]]
) -> None:
    for owner in (first, second):
        saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)


def _title(owner: Any, name: str) -> str:
    if isinstance(owner, ModuleType):
        return f"{owner.__name__}.{name}"
    return f"{owner.__module__}.{owner.__qualname__}.{name}"


def _guard(real: Callable[..., Any], title: str, thread: int) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            _judge(title, inspect.currentframe())
        return real(*args, **kwargs)

    return guarded


def _judge(title: str, frame: FrameType | None) -> None:
    """Raise unless the caller may: the first one outside the standard library decides."""
    frame = frame.f_back if frame is not None else None
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        if package in _HARMLESS or package in _OUTSIDERS:
            return
        if package not in sys.stdlib_module_names:
            place = f"{module}:{frame.f_lineno} ({frame.f_code.co_qualname})"
            problem = f"{title} reaches the real world from {place}"
            raise EscapedSimulationError(f"{problem}; use the ports that the run hands in")
        frame = frame.f_back


# --- asyncio's unordered answers ------------------------------------------------------------------


class _Ordered(set[Any]):
    """A set that is read in the order in which it was made, not in that of addresses."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = list(items)
        super().__init__(self._items)

    def __iter__(self) -> Iterator[Any]:
        return (item for item in self._items if item in self)

    def pop(self) -> Any:
        """Remove and return the first."""
        item = next(iter(self))
        assert item in self, "what is there can be taken"
        self.remove(item)
        assert item not in self
        return item


def _make_wait(real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def wait(futures: Collection[Any], **options: Any) -> tuple[_Ordered, _Ordered]:
        given = list(futures)
        done, pending = await real(given, **options)
        return _Ordered(f for f in given if f in done), _Ordered(f for f in given if f in pending)

    return wait


def _make_as_completed(real: Callable[..., Any]) -> Callable[..., Any]:
    def as_completed(work: Iterable[Any], **options: Any) -> Any:
        # Tasks are made here, in the order given: asyncio makes them in the order of a set.
        loop = asyncio.get_running_loop()
        tasks = [
            each if asyncio.isfuture(each) else loop.create_task(_finish(each)) for each in work
        ]
        return real(tasks, **options)

    return as_completed


async def _finish(work: Awaitable[Any]) -> Any:
    return await work
