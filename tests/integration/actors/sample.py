"""Actor classes for tests of the public API: a ledger that does everything a handler may do."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import ClassVar

import msgspec

from kelpie import Actor, State, command, query, ref, reminder
from kelpie.core.errors import ConflictError


class Gate:
    """What a test opens to let a handler go on, and sees a handler arrive at."""

    def __init__(self) -> None:
        self.entered: asyncio.Event = asyncio.Event()
        self.opened: asyncio.Event = asyncio.Event()

    async def pass_through(self) -> None:
        self.entered.set()
        await self.opened.wait()


class Ledger(State):
    total: int = 0
    seen: list[str] = msgspec.field(default_factory=list)


class Account(Actor[Ledger]):
    """Adds, waits, calls others and breaks, as its tests ask."""

    gates: ClassVar[dict[str, Gate]] = {}
    activated: ClassVar[list[str]] = []

    def on_activate(self) -> None:
        self.activated.append(self.__target__.key)

    @command
    def add(self, amount: int, label: str = "") -> int:
        self.state.total += amount
        if label:
            self.state.seen.append(label)
        return self.state.total

    @query
    def total(self) -> int:
        return self.state.total

    @query
    def seen(self) -> list[str]:
        return self.state.seen

    @query
    def spoil(self) -> int:
        self.state.total = -1
        return self.state.total

    @query
    def emit_from_a_query(self) -> None:
        self.ctx.emit("never", 1)

    @command
    async def wait(self, gate: str, amount: int = 1) -> int:
        before = self.state.total
        await self.gates[gate].pass_through()
        self.state.total = before + amount
        return self.state.total

    @command
    async def give_up(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            self.state.total += 1
            return "gave up"
        return "never"

    @command
    async def linger(self) -> None:
        await asyncio.Event().wait()

    @command
    def break_down(self, amount: int) -> None:
        self.state.total += amount
        raise ZeroDivisionError("a bug in break_down")

    @command
    async def break_later(self, amount: int) -> None:
        self.state.total += amount
        await asyncio.sleep(0)
        raise ZeroDivisionError("a bug in break_later")

    @command
    def refuse(self) -> None:
        self.state.total += 1_000
        raise ConflictError("refused")

    # --- chains -------------------------------------------------------------------------------

    @command
    async def ask_back(self, other: str) -> int:
        """Have another actor ask this one, which waits, for its total."""
        return await ref(Account, other).read(self.ctx.key)

    @command
    async def read(self, other: str) -> int:
        return await ref(Account, other).total()

    @command
    async def come_back(self, other: str) -> int:
        return await ref(Account, other).push(self.ctx.key, 1)

    @command
    async def push(self, other: str, amount: int) -> int:
        pushed = await ref(Account, other).add(amount)
        self.state.total += amount
        return pushed

    @command
    async def cross(self, gate: str, other: str) -> int:
        await self.gates[gate].pass_through()
        return await ref(Account, other).add(1)

    @command
    async def change_then_call(self, other: str) -> int:
        self.state.total += 1
        return await ref(Account, other).add(1)

    @command
    async def descend(self, depth: int) -> int:
        if depth == 0:
            return self.ctx.remaining_ms
        return await ref(Account, f"depth-{depth}").descend(depth - 1)

    @command
    def close(self) -> int:
        self.ctx.delete()
        return self.state.total

    @command
    async def submit_in_a_handler(self, other: str) -> None:
        await ref(Account, other).add.submit(1)

    @command
    async def handle_in_a_handler(self, other: str) -> str:
        return await ref(Account, other).add.handle("call-1").status()

    # --- messages, time, events, map ----------------------------------------------------------

    @command
    def pass_on(self, other: str, labels: list[str]) -> None:
        for label in labels:
            self.ctx.send(ref(Account, other).add, 1, label)
            self.ctx.emit("account.passed", label)

    @command
    def pass_bug(self, other: str) -> None:
        self.ctx.send(ref(Account, other).break_down, 5)

    @command
    def later(self, name: str, after_ms: int) -> None:
        self.ctx.remind(name, self.ctx.now_ms + after_ms, self.tick, name)

    @command
    def never_mind(self, name: str) -> None:
        self.ctx.cancel_reminder(name)

    @reminder
    def tick(self, name: str) -> None:
        self.state.seen.append(name)

    @command
    async def file(self, key: str, value: int) -> int | None:
        before = await self.ctx.kv.get(key, int)
        self.ctx.kv.set(key, value)
        assert await self.ctx.kv.get(key, int) == value
        return before

    @command
    def unfile(self, key: str) -> None:
        self.ctx.kv.delete(key)

    @query
    async def files(self, start: str = "", limit: int = 10) -> dict[str, int]:
        return dict(await self.ctx.kv.range(int, start=start, limit=limit))

    @command
    async def replace_files(self, gone: str, new: str) -> list[str]:
        self.ctx.kv.delete(gone)
        self.ctx.kv.set(new, 0)
        return [key for key, _ in await self.ctx.kv.range(int, limit=3)]

    @command
    def draw(self) -> list[str]:
        return [self.ctx.rng.uuid(), self.ctx.idempotency_key, self.ctx.now.isoformat()]

    @command
    def grow(self, characters: int) -> None:
        self.state.seen = ["x" * characters]


def use_processor(milliseconds: int) -> None:
    """Compute for so much of this thread's own processor time."""
    until_ns = time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < until_ns:
        pass


class Heavy(Actor[Ledger]):
    """Holds the event loop in each way there is."""

    @command
    def compute(self) -> None:
        use_processor(150)

    @command
    async def compute_later(self) -> None:
        await asyncio.sleep(0)
        use_processor(150)

    @query
    def look_long(self) -> None:
        use_processor(150)

    @command
    def hold(self) -> None:
        threading.Event().wait(0.3)
