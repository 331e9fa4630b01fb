"""What a simulated client of a user's actors gets: typed results and typed refusals."""

from __future__ import annotations

import pytest

from kelpie.core.errors import ConflictError
from kelpie.sim.invariants import every_invariant
from kelpie.sim.run import run
from kelpie.sim.scenarios.bank import Books, Vault
from kelpie.sim.subject import SWARM, configure, subject_of
from kelpie.sim.swarm import RunConfig
from kelpie.sim.testing import serve, settle, states
from kelpie.sim.world import SimulatedWorld


async def trade(world: SimulatedWorld) -> None:
    world.always("nothing is wrong", lambda _: None)
    client = await serve(world, Vault)
    names = [each.name for each in world.invariants]
    assert {"nothing is wrong", *(each.name for each in every_invariant())} <= set(names)
    assert len(names) == len(set(names))
    assert await client.ref(Vault, "a").bring(500) == 500
    again = client.ref(Vault, "a", idempotency_key="once")
    assert [await again.bring(1), await again.bring(1)] == [501, 501]
    assert await client.ref(Vault, "a").move("b", 200) == 301
    with pytest.raises(ConflictError, match="301 cents, not 302"):
        await client.ref(Vault, "a").move("b", 302)
    handles = [await client.ref(Vault, "c").bring.submit(cents) for cents in (1, 2, 3)]
    assert [await handle.result() for handle in handles] == [1, 3, 6]
    kept = client.ref(Vault, "c", idempotency_key="twice").bring
    assert (await kept.submit(4)).call_id == (await kept.submit(4)).call_id
    with pytest.raises(ConflictError, match="cents, not 100"):
        await (await client.ref(Vault, "c").move.submit("b", 100)).result()
    await settle(world)
    assert await client.ref(Vault, "b").books() == (0, 0, 200)
    assert states(world.view, Vault)["c"].brought == 10
    assert states(world.view, Vault)["a"] == Books(brought=501, sent=200)
    world.sometimes("it was traded")


def test_a_client_calls_by_type_and_is_refused_by_type() -> None:
    report = run(subject_of(trade).make(), 1, RunConfig())
    assert report.violation is None, report.violation
    assert report.reached == {"it was traded": 1}


def test_a_failed_expectation_inside_a_world_is_a_violation_of_the_run() -> None:
    async def wrong(world: SimulatedWorld) -> None:
        client = await serve(world, Vault)
        assert await client.ref(Vault, "a").bring(5) == 6, "money vanished"

    report = run(subject_of(wrong).make(), 1, RunConfig())
    assert report.violation is not None
    assert "money vanished" in report.violation.text


async def hand_in(world: SimulatedWorld) -> None:
    client = await serve(world, Vault)
    handles = [await client.ref(Vault, "a").bring.submit(1) for _ in range(12)]
    await settle(world)
    found = [await handle.result() for handle in handles]
    assert found == list(range(1, 13)), "submitted calls have their turns once each, in order"
    world.sometimes("all came to an end")


def test_submitted_calls_come_to_their_ends_under_every_fault() -> None:
    subject = subject_of(hand_in)
    for seed in range(1, 16):
        report = run(subject.make(), seed, configure(subject, seed, SWARM))
        assert report.violation is None, (seed, report.violation)
        assert report.reached == {"all came to an end": 1}
