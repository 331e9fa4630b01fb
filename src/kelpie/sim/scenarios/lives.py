"""Lives: agents are made, read, listed and deleted by several clients, while servers die.

Some creations are asked for twice at once under one key. A client knows what it was told, and reads
its agents until it deletes them, and after.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kelpie.sim.client import insist
from kelpie.sim.edge import HttpAnswer
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants.life import DeletingSeen
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

PAUSE_S_MAX: Final = 1.0
TWICE: Final = 0.4
DELETES: Final = 0.3
PAGE_ROWS: Final = 200


class LivesScenario:
    """Agents on one machine."""

    name = "lives"

    def __init__(self) -> None:
        self._alive: set[str] = set()

    async def run(self, world: SimulatedWorld) -> None:
        """Make, read, delete; heal; compare the list."""
        host = world.add_host("n1")
        (host.directory / "workspace").mkdir()
        await world.unleash()
        async with asyncio.TaskGroup() as clients:
            for number in range(world.config.clients):
                clients.create_task(self._live(world, host, number), name=f"client-{number}")
        await settle(world)
        for agent in sorted(self._alive):
            answer = await insist(host, "GET", f"/v1/agents/{agent}")
            assert answer.status == 200, answer.body
        listed = await insist(host, "GET", f"/v1/agents/?limit={PAGE_ROWS}")
        assert listed.status == 200, listed.body
        found = {each["id"] for each in listed.json()}
        assert found == self._alive, f"listed are {found}, there should be {self._alive}"

    async def _live(self, world: SimulatedWorld, host: SimulatedHost, number: int) -> None:
        rng = world.stream(f"client:{number}")
        mine: list[str] = []
        for turn in range(world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            drawn = rng.random()
            if not mine or drawn > 2 * DELETES:
                mine.append(await self._create(host, f"{number}-{turn}", rng.random() < TWICE))
                self._alive.add(mine[-1])
            elif drawn < DELETES:
                await self._delete(world, host, mine.pop(rng.randrange(len(mine))))
            else:
                answer = await insist(host, "GET", f"/v1/agents/{rng.choice(mine)}")
                assert answer.status == 200, answer.body

    async def _create(self, host: SimulatedHost, name: str, is_doubled: bool) -> str:  # noqa: FBT001
        body = {"name": name, "workspace": str(host.directory / "workspace")}
        asked = 2 if is_doubled else 1
        answers: list[HttpAnswer] = await asyncio.gather(
            *(insist(host, "POST", "/v1/agents/", body, key=f"make-{name}") for _ in range(asked))
        )
        assert all(each.status == 200 for each in answers), [each.body for each in answers]
        return str(answers[0].json()["id"])

    async def _delete(self, world: SimulatedWorld, host: SimulatedHost, agent: str) -> None:
        world.view.said.setdefault("deleting", []).append(DeletingSeen(host.name, agent))
        self._alive.discard(agent)
        answer = await insist(host, "DELETE", f"/v1/agents/{agent}", key=f"delete-{agent}")
        # One who asks again after the answer was lost finds nobody to delete.
        assert answer.status in {200, 404}, answer.body
        gone = await insist(host, "GET", f"/v1/agents/{agent}")
        assert gone.status == 404, gone.body
        world.sometimes("an agent was deleted")
