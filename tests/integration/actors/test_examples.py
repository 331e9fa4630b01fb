"""The examples run, and do what they say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from examples import bank, chat, counter, rate_limiter, saga, scheduler
from kelpie import Runtime
from tests.waiting import eventually_async


def test_the_counter_goes_on_where_it_was(tmp_path: Path) -> None:
    assert asyncio.run(counter.main(tmp_path / "a.db")) == 1
    assert asyncio.run(counter.main(tmp_path / "a.db")) == 2


async def test_a_transfer_to_a_closed_account_comes_back(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "a.db", actors=[bank.Account]) as runtime:
        ada, ben = runtime.ref(bank.Account, "ada"), runtime.ref(bank.Account, "ben")
        await ada.deposit(100)
        await ben.close()
        assert await ada.transfer("ben", 30) == 70

        async def is_back() -> bool:
            return await ada.balance() == 100

        await eventually_async(is_back, within_s=5, what="the money comes back")
        assert await ben.balance() == 0
    assert await bank.main(tmp_path / "b.db") == 7_500


async def test_readers_of_a_room_get_every_post_in_order(tmp_path: Path) -> None:
    said = await chat.main(tmp_path / "a.db")
    assert [post.text for post in said] == ["Is anybody here?", "Good."]
    async with Runtime.open(tmp_path / "a.db", actors=[chat.Room]) as runtime:
        late = await chat.read(runtime, "lobby", after=1, count=1)
        assert late == [chat.Post("ada", "Good.")]
        assert await runtime.ref(chat.Room, "lobby").members() == ["ada"]


async def test_a_saga_books_everything_or_undoes_what_it_booked(tmp_path: Path) -> None:
    async with Runtime.open(tmp_path / "a.db", actors=[saga.Supplier, saga.Trip]) as runtime:
        suppliers = ["flight", "hotel", "car"]
        for name in suppliers:
            await runtime.ref(saga.Supplier, name).supply(1)
        for name, end in (("first", "done"), ("second", "undone")):
            trip = runtime.ref(saga.Trip, name)
            wanted = suppliers if name == "first" else ["boat", *suppliers]
            if name == "second":
                await runtime.ref(saga.Supplier, "boat").supply(1)
            await trip.begin(wanted)

            async def has_ended(trip: saga.Trip = trip, end: str = end) -> bool:
                return await trip.phase() == end

            await eventually_async(has_ended, within_s=5, what=f"the {name} trip is {end}")
        assert await runtime.ref(saga.Supplier, "boat").left() == 1
        assert await runtime.ref(saga.Supplier, "hotel").left() == 0
    assert await saga.main(tmp_path / "b.db") == "undone"


async def test_the_limiter_lets_a_burst_through_and_names_the_wait(tmp_path: Path) -> None:
    told = await rate_limiter.main(tmp_path / "a.db")
    assert told[: rate_limiter.TOKENS_MAX] == [0] * rate_limiter.TOKENS_MAX
    assert all(0 < wait_ms <= 1_001 for wait_ms in told[rate_limiter.TOKENS_MAX :])


@pytest.mark.parametrize("count", [1, 2_000])
async def test_every_scheduled_job_runs_once(tmp_path: Path, count: int) -> None:
    assert await scheduler.main(tmp_path / "a.db", count) == count
