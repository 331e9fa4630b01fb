"""A day of an agent: a model, tools, files, commands, questions and a person, under faults.

One client talks to one agent. It reads, rewrites a file, builds in the sandbox and checks; red
effects wait for the person. The client knows what was acknowledged and asks everything else again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.model import Message, ModelReply, SimulatedModel
from kelpie.sim.person import Person
from kelpie.sim.sandbox import SimulatedCommand
from kelpie.sim.scenarios.agent_oracles import check_day
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

PROMPTS: Final = ("read", "rewrite", "build", "check")
BUILD: Final = ("build", "out.txt")
CHECK: Final = ("check",)
NOTES: Final = "remember the milk\n"
DRAFT: Final = "Nothing is done.\n"
REPORT: Final = "Everything is done.\n"
QUESTIONS_END_MS: Final = 20_000
LOOK_EVERY_S: Final = 0.25
LOOK_EVERY_S_MAX: Final = 20.0
LOOKS_MAX: Final = 600  # some hours: a wall clock that jumps back lets a question live longer
ENDED: Final = frozenset({"completed", "failed", "cancelled"})


def decide(messages: Sequence[Message]) -> ModelReply:
    """Answer as the script of the day says, from the conversation alone."""
    last = messages[-1]
    if last["role"] == "tool":
        return ModelReply(text=f"I saw: {str(last['content'])[:60]}")
    text = str(last["content"])
    if "read" in text:
        return ModelReply(calls=(("read_file", {"path": "notes.txt"}),))
    if "rewrite" in text:
        return ModelReply(calls=(("write_file", {"path": "report.txt", "content": REPORT}),))
    if "build" in text:
        return ModelReply(calls=(("run_command", {"argv": list(BUILD), "timeout_s": 3}),))
    arguments = {"argv": list(CHECK), "timeout_s": 3, "idempotent": True}
    return ModelReply(calls=(("run_command", arguments), ("read_file", {"path": "notes.txt"})))


async def build(command: SimulatedCommand) -> int:
    """Write a file, slowly."""
    await command.print(b"building\n")
    await asyncio.sleep(0.5)
    command.write("out.txt", b"built\n")
    await command.print(b"built\n")
    return 0


async def check(command: SimulatedCommand) -> int:
    """Look, slowly."""
    await asyncio.sleep(0.2)
    await command.print(b"checked\n")
    return 0


class AgentDayScenario:
    """One agent's day.

    Attributes:
        prompts: What the client says, one after the other; drawn from the seed when not given.
        runs: How each prompt's run ended, in order.
        person: Who answers the questions; None before the day begins.
        agent: The agent's id; empty before it was created.
        host: The machine; None before the day begins.
    """

    name = "agent_day"

    def __init__(self, prompts: Sequence[str] = (), *, agrees: bool = False) -> None:
        """Make a day; with ``agrees`` the person says yes to everything."""
        self.prompts = tuple(prompts)
        self.runs: list[dict[str, Any]] = []
        self.person: Person | None = None
        self.agent = ""
        self.host: SimulatedHost | None = None
        self._agrees = agrees

    async def run(self, world: SimulatedWorld) -> None:
        """Live through the day, heal, compare."""
        host = self.host = self._prepare(world)
        self.person = Person(world, host, agrees=self._agrees)
        await world.unleash()
        watching = world.spawn("person", self.person.watch())
        await self._talk(host)
        await settle(world)
        watching.cancel()
        await check_day(self, world)
        world.sometimes("a run completed", self._has_run("completed"))
        world.sometimes("a run failed", self._has_run("failed"))

    def _has_run(self, status: str) -> bool:
        return any(run["status"] == status for run in self.runs)

    @property
    def workspace(self) -> Path:
        """Where the agent's files are."""
        assert self.host is not None, "the day has begun"
        return self.host.directory / "workspace"

    def _prepare(self, world: SimulatedWorld) -> SimulatedHost:
        world.programs |= {"build": build, "check": check}
        world.network.add_peer("http://model.sim/", SimulatedModel(decide, world.plan).answer)
        host = world.add_host("n1", flags={"approvals.ttl_ms": str(QUESTIONS_END_MS)})
        workspace = host.directory / "workspace"
        workspace.mkdir()
        (workspace / "notes.txt").write_text(NOTES)
        (workspace / "report.txt").write_text(DRAFT)
        if not self.prompts:
            rng = world.stream("prompts")
            self.prompts = tuple(rng.choice(PROMPTS) for _ in range(world.config.operations))
        return host

    async def _talk(self, host: SimulatedHost) -> None:
        body = {"name": "sim", "workspace": str(self.workspace)}
        answer = await insist(host, "POST", "/v1/agents/", body, key="create")
        assert answer.status == 200, answer.body
        self.agent = answer.json()["id"]
        for turn, prompt in enumerate(self.prompts):
            said = {"messages": [{"role": "user", "content": f"{turn} {prompt}"}]}
            target = f"/v1/agents/{self.agent}/messages/async"
            answer = await insist(host, "POST", target, said, key=f"say-{turn}")
            assert answer.status == 200, answer.body
            self.runs.append(await self._follow(host, answer.json()["id"]))

    async def _follow(self, host: SimulatedHost, run_id: str) -> dict[str, Any]:
        """Return the run once it has ended."""
        run: dict[str, Any] = {}
        rest_s = LOOK_EVERY_S
        for _ in range(LOOKS_MAX):
            answer = await insist(host, "GET", f"/v1/runs/{run_id}")
            assert answer.status == 200, answer.body
            run = answer.json()
            if run["status"] in ENDED:
                return run
            await asyncio.sleep(rest_s)
            rest_s = min(rest_s * 1.05, LOOK_EVERY_S_MAX)
        raise AssertionError(f"run {run_id} does not end: {run['status']}")
