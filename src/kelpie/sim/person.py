"""A simulated person: answers the questions that the product asks, as people do.

Most say yes at once. Some say it late, after it expired, twice, to something else, with a no in the
same breath, or never; some say no. Which, is a fault of the plan or a draw of the seed.

Invariants: what was said is written down before it is sent: the answer to a yes may be lost.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from kelpie.ports.network import NetworkError
from kelpie.sim.client import is_passing
from kelpie.sim.clock import NANOSECONDS_PER_MS, NANOSECONDS_PER_SECOND
from kelpie.sim.edge import HttpAnswer
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants.approvals import Said
from kelpie.sim.world import SimulatedWorld

LOOK_EVERY_S: Final = 0.25
DENIES: Final = 0.1
WAITS: Final = 0.15
LAST_MOMENT_MS_MAX: Final = 400
OTHER_DIGEST: Final = "sha256:" + "0" * 64


class Person:
    """Answers what one machine asks.

    Attributes:
        said: Every answer, in order, whether or not it arrived.
        accepted: The answers that the product took.
    """

    def __init__(self, world: SimulatedWorld, host: SimulatedHost, *, agrees: bool = False) -> None:
        """Make a person; one who ``agrees`` says yes to everything that no fault forbids."""
        self.said: list[Said] = []
        self.accepted: list[Said] = []
        self._world = world
        self._host = host
        self._rng = world.stream(f"person:{host.name}")
        self._agrees = agrees
        self._seen: set[str] = set()

    async def watch(self) -> None:
        """Answer questions for ever; cancel it when the work is over."""
        async with asyncio.TaskGroup() as answers:
            while True:
                assert len(self.accepted) <= len(self.said), "nobody hears what was not said"
                for effect in await self._look():
                    if effect["effect_id"] not in self._seen:
                        self._seen.add(effect["effect_id"])
                        answers.create_task(self._answer(effect), name="person:answer")
                await asyncio.sleep(LOOK_EVERY_S)

    def agrees_to(self, effect_id: str) -> set[str]:
        """Return the digests of an effect that the person ever said yes to."""
        return {
            each.digest
            for each in self.said
            if each.effect_id == effect_id and each.verb == "approve"
        }

    async def _look(self) -> list[dict[str, Any]]:
        try:
            answer = await self._host.request("GET", "/v1/approvals?state=waiting")
        except NetworkError:
            return []
        if is_passing(answer):
            return []
        assert answer.status == 200, answer.body
        effects: list[dict[str, Any]] = answer.json()["effects"]
        return effects

    async def _answer(self, effect: dict[str, Any]) -> None:
        fires = self._world.plan.fires
        if fires("concurrency.approval_never"):
            return
        if fires("concurrency.approval_late"):
            await self._wait_for_expiry(effect)
            await self._say(effect, "approve")
            return
        if fires("concurrency.approval_stale"):
            await self._say(effect, "approve", digest=OTHER_DIGEST)
        if fires("concurrency.approval_contradicted"):
            async with asyncio.TaskGroup() as both:
                both.create_task(self._say(effect, "approve"), name="person:yes")
                both.create_task(self._say(effect, "deny"), name="person:no")
            return
        if not self._agrees and self._rng.random() < WAITS:
            await self._wait_for_the_last_moment(effect)
        verb = "deny" if not self._agrees and self._rng.random() < DENIES else "approve"
        await self._insist(effect, verb)
        if verb == "approve" and fires("concurrency.approval_twice"):
            await self._say(effect, "approve")

    async def _wait_for_expiry(self, effect: dict[str, Any]) -> None:
        expires_ms = effect["card"]["expires_ms"]
        while self._host.clock.wall_ns() <= expires_ms * NANOSECONDS_PER_MS:  # noqa: ASYNC110  clocks
            await asyncio.sleep(1)

    async def _wait_for_the_last_moment(self, effect: dict[str, Any]) -> None:
        """Let most of the time go by: what was said in time may be acted on too late."""
        early_ms = self._rng.randrange(1, LAST_MOMENT_MS_MAX)
        until_ns = (effect["card"]["expires_ms"] - early_ms) * NANOSECONDS_PER_MS
        while (left_ns := until_ns - self._host.clock.wall_ns()) > 0:  # noqa: ASYNC110  clocks
            await asyncio.sleep(min(1.0, left_ns / NANOSECONDS_PER_SECOND))

    async def _insist(self, effect: dict[str, Any], verb: str) -> None:
        """Say it until somebody has heard it."""
        while True:
            answer = await self._say(effect, verb)
            if answer is not None and not is_passing(answer):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _say(
        self, effect: dict[str, Any], verb: str, *, digest: str = ""
    ) -> HttpAnswer | None:
        """Say it once; return the product's answer, None when it is lost."""
        said = Said(effect["effect_id"], digest or effect["digest"], verb)
        self.said.append(said)
        self._world.view.said.setdefault("person", []).append(said)
        body = {"digest": said.digest} if verb == "approve" else {}
        target = f"/v1/approvals/{said.effect_id}/{verb}"
        try:
            answer = await self._host.request("POST", target, body)
        except NetworkError:
            return None
        self._world.note("person", f"{verb} {answer.status}")
        if answer.status == 200:
            self.accepted.append(said)
        else:
            assert is_passing(answer) or answer.status in {404, 409}, answer.body
        return answer
