"""Plans: files and directories are planned, approved by a person, and applied, while servers die.

After every apply the scenario plans the same again. One that is applied leaves nothing to do, and
what is on the disk is then what was wanted, in a directory that only the apply writes to.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any, Final

from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants.plans import ReplanSeen
from kelpie.sim.person import Person
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

FILES_MAX: Final = 4
APPLIES_MAX: Final = 3
QUESTIONS_END_MS: Final = 20_000
LOOK_EVERY_S: Final = 0.5
LOOK_EVERY_S_MAX: Final = 20.0
LOOKS_MAX: Final = 600  # some hours: a wall clock that jumps back lets a question live longer
OVER: Final = frozenset({"applied", "failed", "denied", "expired", "refused"})


def draw_workspace(rng: random.Random) -> dict[str, str]:
    """Return what should be below the root: contents by path, some in a directory."""
    count = rng.randrange(1, FILES_MAX + 1)
    places = [rng.choice(["", "etc/"]) for _ in range(count)]
    return {f"{place}f{index}": f"{rng.randrange(9)}\n" for index, place in enumerate(places)}


def write_yaml(wanted: dict[str, str]) -> str:
    """Return the workspace as text; every file depends on the one before it."""
    lines = ["version: 1", "units:"]
    if any(path.startswith("etc/") for path in wanted):
        lines += ["  - id: etc", "    type: linux.dir", "    path: etc"]
    before = ""
    for path, content in wanted.items():
        name = path.replace("/", "-")
        lines += [f"  - id: {name}", "    type: linux.file", f"    path: {path}"]
        lines += [f'    content: "{content.strip()}\\n"']
        if before:
            lines += [f"    depends_on: [{before}]"]
        before = name
    return "\n".join(lines) + "\n"


class PlansScenario:
    """One root on one machine, changed by several plans one after the other."""

    name = "plans"

    async def run(self, world: SimulatedWorld) -> None:
        """Plan, answer, apply, plan again; heal."""
        host = world.add_host("n1", flags={"approvals.ttl_ms": str(QUESTIONS_END_MS)})
        root = host.directory / "root"
        root.mkdir()
        person = Person(world, host)
        await world.unleash()
        watching = world.spawn("person", person.watch())
        rng = world.stream("plans")
        for number in range(rng.randrange(1, APPLIES_MAX + 1)):
            await self._apply(world, host, root, draw_workspace(rng), number)
        await settle(world)
        watching.cancel()

    async def _apply(
        self,
        world: SimulatedWorld,
        host: SimulatedHost,
        root: Path,
        wanted: dict[str, str],
        number: int,
    ) -> None:
        body = {"yaml": write_yaml(wanted), "root": str(root)}
        made, again = await asyncio.gather(
            insist(host, "POST", "/v1/plans", body, key=f"plan-{number}"),
            insist(host, "POST", "/v1/plans", body, key=f"plan-{number}"),
        )
        assert made.status == again.status == 200, (made.body, again.body)
        plan_id = made.json()["plan_id"]
        target = f"/v1/plans/{plan_id}/apply"
        answer = await insist(host, "POST", target, key=f"apply-{number}")
        assert answer.status == 200, answer.body
        plan = await self._follow(host, plan_id)
        world.sometimes(f"a plan ended {plan['status']}")
        if plan["status"] != "applied" or world.plan.injected["concurrency.target_moved"]:
            return
        found = {each: (root / each).read_text() for each in wanted}
        assert found == wanted, f"applied were {wanted}, there is {found}"
        replanned = await insist(host, "POST", "/v1/plans", body, key=f"again-{number}")
        assert replanned.status == 200, replanned.body
        planned = world.view.said.setdefault("re-planned", [])
        planned.append(ReplanSeen(str(root), replanned.json()["has_changes"]))
        world.check()

    async def _follow(self, host: SimulatedHost, plan_id: str) -> dict[str, Any]:
        plan: dict[str, Any] = {}
        rest_s = LOOK_EVERY_S
        for _ in range(LOOKS_MAX):
            answer = await insist(host, "GET", f"/v1/plans/{plan_id}")
            assert answer.status == 200, answer.body
            plan = answer.json()
            if plan["status"] in OVER:
                return plan
            await asyncio.sleep(rest_s)
            rest_s = min(rest_s * 1.05, LOOK_EVERY_S_MAX)
        raise AssertionError(f"plan {plan_id} does not end: {plan['status']}")
