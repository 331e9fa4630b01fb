"""The demo's scenario as a client lives it, robust to the server dying under it at any step.

What the client knows (what was acknowledged, what it approved) outlives a crash; everything else
it asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kelpie.app.opened import App, open_app
from kelpie.app.world import World, open_sqlite
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.settings import Settings, load_settings
from kelpie.sim.loop import Choose, SimulatedCrash, SimulatedLoop, first_in_first_out
from kelpie.sim.model import Message, ModelReply, SimulatedModel
from kelpie.sim.network import SimulatedNetwork
from kelpie.sim.sandbox import SimulatedCommand, SimulatedSandbox
from kelpie.sim.world import RecordedTelemetry, SimulatedClock, SimulatedRng
from kelpie.storage.sqlite.store import SqliteStore
from tests.simulation.asgi import request

PROMPTS = ("read", "rewrite", "build", "check")
BUILD = ["build", "out.txt"]
CHECK = ["check"]
REPORT = "Everything is done.\n"


def decide(messages: Sequence[Message]) -> ModelReply:
    """Answer as the script of the scenario says, from the conversation alone."""
    last = messages[-1]
    if last["role"] == "tool":
        return ModelReply(text=f"I saw: {str(last['content'])[:60]}")
    text = str(last["content"])
    if "read" in text:
        return ModelReply(calls=(("read_file", {"path": "notes.txt"}),))
    if "rewrite" in text:
        return ModelReply(calls=(("write_file", {"path": "report.txt", "content": REPORT}),))
    if "build" in text:
        return ModelReply(calls=(("run_command", {"argv": BUILD, "timeout_s": 3}),))
    arguments = {"argv": CHECK, "timeout_s": 3, "idempotent": True}
    return ModelReply(calls=(("run_command", arguments), ("read_file", {"path": "notes.txt"})))


async def build(command: SimulatedCommand) -> int:
    await command.print(b"building\n")
    await asyncio.sleep(0.5)
    command.write("out.txt", b"built\n")
    await command.print(b"built\n")
    return 0


async def check(command: SimulatedCommand) -> int:
    await asyncio.sleep(0.2)
    await command.print(b"checked\n")
    return 0


@dataclass
class Client:
    """What the person in front of the product remembers."""

    agent: str = ""
    acknowledged: list[str] = field(default_factory=list)
    approved: dict[str, str] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Host:
    """One simulated machine: what outlives its processes."""

    directory: Path
    choose: Choose = first_in_first_out
    now_s: float = 0.0
    lives: int = 0
    steps: int = 0
    started: list[str] = field(default_factory=list)
    stores: list[SqliteStore] = field(default_factory=list)
    client: Client = field(default_factory=Client)
    model: SimulatedModel = field(default_factory=lambda: SimulatedModel(decide))

    def __post_init__(self) -> None:
        self.workspace = self.directory / "workspace"
        self.workspace.mkdir()
        (self.workspace / "notes.txt").write_text("remember the milk\n")
        (self.workspace / "report.txt").write_text("Nothing is done.\n")

    def settings(self) -> Settings:
        environment = {"OPENAI_API_KEY": "sim", "OPENAI_BASE_URL": "http://model.sim/v1"}
        return load_settings(
            environment=environment,
            cwd=self.directory,
            home=self.directory,
            flags={
                "data_dir": str(self.directory / "data"),
                "workspaces.roots": str(self.directory),
            },
        )

    def world(self) -> World:
        network = SimulatedNetwork()
        network.add_peer("http://model.sim/", self.model.answer)
        programs = {"build": build, "check": check}
        return World(
            clock=SimulatedClock(),
            rng=SimulatedRng(self.lives),
            network=network,
            telemetry=RecordedTelemetry(),
            environment={"OPENAI_API_KEY": "sim"},
            open_store=self._open_store,
            open_sandbox=lambda blobs, _: SimulatedSandbox(programs, blobs, self.started),
            metrics_text=lambda: "",
        )

    async def _open_store(self, path: Path, address: str, clock: Clock, rng: Rng) -> SqliteStore:
        store = await open_sqlite(path, address, clock, rng)
        self.stores.append(store)
        return store

    def live(self, *, crash_at: int = 0) -> bool:
        """Run one process until its client is satisfied, or until it dies at ``crash_at``."""
        loop = SimulatedLoop(choose=self.choose, start_s=self.now_s)
        loop.crash_at = crash_at
        self.lives += 1
        try:
            loop.run_until_complete(self._life())
        except SimulatedCrash:
            survived = False
        else:
            survived = True
        self.now_s = loop.time() + 1.0
        self.steps = loop.steps
        if not survived:
            for store in self.stores:
                store.abandon()
        self.stores.clear()
        loop.abandon()
        return survived

    async def _life(self) -> None:
        async with open_app(self.settings(), drive=True, world=self.world()) as app:
            await pursue(app, self)

    @asynccontextmanager
    async def look(self) -> AsyncIterator[App]:
        """Open the store once more, without executing anything."""
        self.lives += 1
        async with open_app(self.settings(), drive=False, world=self.world()) as app:
            yield app


async def pursue(app: App, host: Host) -> None:
    """Do what is left of the scenario."""
    client = host.client
    if not client.agent:
        body = {"name": "sim", "workspace": str(host.workspace)}
        answer = await request(app.asgi, "POST", "/v1/agents/", body, key="create")
        assert answer.status == 200, answer.body
        client.agent = answer.json()["id"]
    for prompt in PROMPTS:
        if prompt in client.finished:
            continue
        await send(app, client, prompt)
        client.finished[prompt] = await finish(app, client, prompt)


async def send(app: App, client: Client, prompt: str) -> None:
    path = f"/v1/agents/{client.agent}/messages/async"
    body = {"messages": [{"role": "user", "content": prompt}]}
    answer = await request(app.asgi, "POST", path, body, key=f"send-{prompt}")
    assert answer.status == 200, answer.body
    if prompt not in client.acknowledged:
        client.acknowledged.append(prompt)
    client.finished.pop(prompt, None)
    client.approved.setdefault(f"run:{prompt}", answer.json()["id"])


async def finish(app: App, client: Client, prompt: str) -> dict[str, Any]:
    """Approve whatever waits until the run has ended."""
    run_id = client.approved[f"run:{prompt}"]
    run: dict[str, Any] = {}
    for _ in range(500):
        shown = await request(app.asgi, "GET", f"/v1/runs/{run_id}")
        assert shown.status == 200, shown.body
        run = shown.json()
        if run["status"] in {"completed", "failed", "cancelled"}:
            return dict(run)
        waiting = (await request(app.asgi, "GET", "/v1/approvals?state=waiting")).json()
        for effect in waiting["effects"]:
            path = f"/v1/approvals/{effect['effect_id']}/approve"
            # Said before it is heard: the answer to a yes may be lost with the process.
            client.approved[effect["effect_id"]] = effect["digest"]
            answer = await request(app.asgi, "POST", path, {"digest": effect["digest"]})
            assert answer.status in {200, 409}, answer.body
        await asyncio.sleep(0.25)
    raise AssertionError(f"the run of {prompt!r} does not end: {run}")
