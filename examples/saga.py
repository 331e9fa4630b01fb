"""A trip of three bookings: all of them, or each that was made is undone.

The saga is an actor. It books one step at a time by messages, and what it knows is durable between
any two of them. A refusal turns it round: it cancels what it booked, newest first.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import msgspec

from kelpie import Actor, Runtime, State, command, query, ref

Phase = Literal["new", "booking", "undoing", "done", "undone"]


class Stock(State):
    """What a supplier has left, and for whom it keeps what."""

    left: int = 0
    kept: set[str] = msgspec.field(default_factory=set[str])


class Supplier(Actor[Stock]):
    """Sells seats, rooms or cars."""

    @command
    def supply(self, count: int) -> None:
        """Have ``count`` more."""
        self.state.left += count

    @command
    def book(self, trip: str) -> None:
        """Keep one for a trip, and tell the trip whether there was one."""
        is_kept = self.state.left > 0
        if is_kept:
            self.state.left -= 1
            self.state.kept.add(trip)
        self.ctx.send(ref(Trip, trip).booked, self.ctx.key, is_kept)

    @command
    def cancel(self, trip: str) -> None:
        """Give back what a trip had, and tell it so."""
        self.state.kept.discard(trip)
        self.state.left += 1
        self.ctx.send(ref(Trip, trip).cancelled, self.ctx.key)

    @query
    def left(self) -> int:
        """Return how many are free."""
        return self.state.left


class Plan(State):
    """Where a trip is in its life."""

    phase: Phase = "new"
    wanted: list[str] = msgspec.field(default_factory=list[str])
    booked: list[str] = msgspec.field(default_factory=list[str])


class Trip(Actor[Plan]):
    """Books everything, or nothing."""

    @command
    def begin(self, suppliers: list[str]) -> None:
        """Book at each supplier, one after the other."""
        if self.state.phase != "new":
            return
        self.state.phase = "booking"
        self.state.wanted = suppliers
        self._next()

    @command
    def booked(self, supplier: str, is_kept: bool) -> None:  # noqa: FBT001  a message's field
        """Go on after a supplier's answer, or turn round."""
        if is_kept:
            self.state.booked.append(supplier)
        else:
            self.state.phase = "undoing"
        self._next()

    @command
    def cancelled(self, supplier: str) -> None:
        """Go on undoing."""
        self.state.booked.remove(supplier)
        self._next()

    def _next(self) -> None:
        state = self.state
        if state.phase == "undoing":
            if state.booked:
                self.ctx.send(ref(Supplier, state.booked[-1]).cancel, self.ctx.key)
            else:
                state.phase = "undone"
                self.ctx.emit("trip.ended", state.phase)
            return
        if len(state.booked) < len(state.wanted):
            self.ctx.send(ref(Supplier, state.wanted[len(state.booked)]).book, self.ctx.key)
        else:
            state.phase = "done"
            self.ctx.emit("trip.ended", state.phase)

    @query
    def phase(self) -> Phase:
        """Return where the trip is."""
        return self.state.phase


async def main(path: Path) -> Phase:
    """Begin a trip whose last step is sold out, and return how it ended."""
    async with Runtime.open(path, actors=[Supplier, Trip]) as runtime:
        await runtime.ref(Supplier, "flight").supply(1)
        trip = runtime.ref(Trip, "holiday")
        await trip.begin(["flight", "hotel"])
        async for _ in runtime.follow(trip):
            break
        return await trip.phase()


if __name__ == "__main__":
    print(asyncio.run(main(Path("saga.db"))))
