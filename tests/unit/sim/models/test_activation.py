"""The engine looks like one actor in every order of events; over a store that lies it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest

from kelpie.core.errors import StoreError
from kelpie.core.ids import ActorId
from kelpie.sim.explore import explore
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.models.activation import (
    ANN,
    BEN,
    CAY,
    DAN,
    MakeStore,
    SingleCall,
    activation_model,
)
from kelpie.sim.models.held import HeldStore
from kelpie.storage.records import Commit, CommitReceipt, StoredActor

pytestmark = pytest.mark.requirement("K-07")


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    loop = SimulatedLoop()
    yield loop
    loop.abandon()


@pytest.mark.parametrize(
    ("callers", "troubles_max", "states_least"),
    [((ANN, DAN), 1, 200), ((BEN, CAY), 1, 200), ((ANN, BEN, CAY), 0, 400)],
    ids=["a write and a read", "one key twice", "three writes"],
)
def test_callers_see_one_actor_in_every_order_of_events(
    loop: SimulatedLoop, callers: tuple[SingleCall, ...], troubles_max: int, states_least: int
) -> None:
    found = explore(activation_model(loop, callers=callers, troubles_max=troubles_max))
    assert found.outcome == "holds", str(found.broken)
    assert found.states >= states_least
    kinds = {"call", "load", "write", "restart", "write of the dead"}
    troubles = {"kill", "evict", "pause", "resume", "load fails", "disk fails"}
    assert set(found.taken) == kinds | (troubles if troubles_max else set())
    assert 0 < found.goals < found.states


# --- saboteurs ----------------------------------------------------------------------------------


class EarlyStore(HeldStore):
    """Says that a commit is durable when it is queued."""

    __slots__ = ()

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        future = super().commit(commit)
        if not future.done():
            future.set_result(CommitReceipt(commit.expected_version + 1, (), 0))
        return future


class EmptyStore(HeldStore):
    """Takes an actor that cannot be loaded for one that does not exist."""

    __slots__ = ()

    async def load(self, actor: ActorId) -> StoredActor | None:
        try:
            return await super().load(actor)
        except StoreError:
            return None


class ForgetfulStore(HeldStore):
    """Keeps no reply to a key."""

    __slots__ = ()

    def commit(self, commit: Commit) -> asyncio.Future[CommitReceipt]:
        return super().commit(msgspec.structs.replace(commit, reply=None))


@pytest.mark.parametrize(
    ("make_store", "callers", "trace"),
    [
        (
            EarlyStore,
            (ANN, DAN),
            (
                "ann adds 1",
                "the actor is loaded",
                "the process dies and another takes over",
                "dan reads",
                "the actor is loaded",
            ),
        ),
        (
            EmptyStore,
            (ANN, DAN),
            (
                "ann adds 1",
                "the actor is loaded",
                "a commit is durable",
                "the process dies and another takes over",
                "dan reads",
                "loading fails",
            ),
        ),
        (
            ForgetfulStore,
            (BEN, CAY),
            (
                "ben adds 10 under the key k",
                "the actor is loaded",
                "a commit is durable",
                "cay adds 10 under the key k",
                "a commit is durable",
            ),
        ),
    ],
    ids=["answers too early", "takes failed for empty", "forgets replies"],
)
def test_a_store_that_lies_is_found_with_a_shortest_trace(
    loop: SimulatedLoop,
    make_store: MakeStore,
    callers: tuple[SingleCall, ...],
    trace: tuple[str, ...],
) -> None:
    found = explore(activation_model(loop, callers=callers, make_store=make_store))
    assert found.broken is not None
    assert found.broken.law == "callers see one actor"
    assert "no order of these operations" in found.broken.problem
    assert found.broken.trace == trace, str(found.broken)
