"""What every scenario does at its end: faults heal, work drains, stores are sound."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from kelpie.app.opened import App
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.core.limits import DEAD_LETTERS_PAGE_MAX, MESSAGE_ATTEMPTS_MAX
from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.world import SimulatedWorld
from kelpie.storage.records import Page

REST_S: Final = 0.01
LIVENESS_S: Final = 300.0  # beyond every deadline, retry and expiry that a scenario sets
_RESTING: Final = frozenset(
    {"done", "failed", "denied", "expired", "voided", "cancelled", "unknown"}
)


async def settle(world: SimulatedWorld) -> None:
    """Heal the world; its pending work must end within a bound, and its stores be sound."""
    await world.heal()
    for host in world.hosts.values():
        if world.plan.injected["migration.upcast_fail"] >= MESSAGE_ATTEMPTS_MAX:
            await _replay_dead_letters(host)
        await world.eventually(
            f"{host.name} comes to rest", partial(_rests, host), within_s=LIVENESS_S
        )
        await _require_sound(host)
        while host.is_writing:  # noqa: ASYNC110  what writes is the machine, not this task
            await asyncio.sleep(REST_S)
        host.look(is_rest=True)


async def _replay_dead_letters(host: SimulatedHost) -> None:
    """Do what a person does once a broken up-cast is mended."""
    node = host.service.node
    for letter in await node.store.dead_letters(TENANT_DEFAULT, DEAD_LETTERS_PAGE_MAX):
        await node.store.replay_dead_letter(TENANT_DEFAULT, letter.message_id)
    node.outbox.wake()


async def _rests(host: SimulatedHost) -> bool:
    """Whether no message waits, no reminder is due, and every effect has ended."""
    app: App = host.service
    stats = await app.node.store.stats()
    assert stats.dead_letters == 0, f"{host.name} has {stats.dead_letters} dead letters"
    effects = await app.node.store.effects(Page(tenant=TENANT_DEFAULT, limit=1_000))
    due = await app.node.store.reminders_due(app.node.world.clock.now_ms(), 1)
    return stats.outbox == 0 and not due and all(row.state in _RESTING for row in effects)


async def _require_sound(host: SimulatedHost) -> None:
    app: App = host.service
    for method, target in (("GET", "/v1/audit/verify"), ("POST", "/v1/store/check")):
        key = None if method == "GET" else "check"
        verdict = (await insist(host, method, target, key=key)).json()
        assert verdict["ok"], f"{host.name}: {verdict}"
    app.node.runtime.check_invariants()
    app.node.dispatcher.check_invariants()
