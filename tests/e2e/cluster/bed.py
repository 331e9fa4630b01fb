"""A cluster of real processes over a real database, and what befalls them.

Every node has a directory and a port of its own. Everything that was started ends with the bed.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.e2e.support.node import Node
from tests.waiting import eventually_async

if TYPE_CHECKING:
    from tests.e2e.support.node import Server
    from tests.e2e.support.scripts import Step
    from tests.postgres import PostgresServer

PROGRAM = Path(__file__).with_name("program.py")
LEASE_MS = 2_000
SETTLE_S = 60.0
"""How long anything may take that a loaded machine does slowly."""
ANSWER_S = 5.0


class BedNode:
    """One node of the cluster, in its many lives."""

    def __init__(self, name: str, directory: Path, store: str) -> None:
        directory.mkdir()
        self.name = name
        self.node = Node(directory)
        self.is_stopped = False
        self._workspaces = directory.parent
        self._store = store
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The process that serves."""
        assert self._server is not None, f"{self.name} was never started"
        return self._server

    @property
    def is_up(self) -> bool:
        """Whether its process runs and has not been stopped."""
        server = self._server
        return server is not None and server.process.status is None and not self.is_stopped

    @property
    def environment(self) -> dict[str, str]:
        """What its processes know beside their arguments."""
        return {
            "KELPIE_NODE": self.name,
            "KELPIE_CLUSTER_LEASE_TTL_MS": str(LEASE_MS),
            "KELPIE_WORKSPACES_ROOTS": str(self._workspaces),
        }

    async def start(self, join: int | None = None) -> None:
        """Starts it and returns once it answers."""
        hint = [] if join is None else ["--join", f"127.0.0.1:{join}"]
        words = (str(PROGRAM), "--store", self._store, *hint)
        self._server = await asyncio.to_thread(self.node.serve, *words, **self.environment)

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        self.server.process.kill()
        self.is_stopped = False

    def stop(self) -> None:
        """Stops it where it is; it does not know."""
        self.is_stopped = True
        self.server.process.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it go on where it was stopped."""
        self.server.process.send(signal.SIGCONT)
        self.is_stopped = False

    async def leave(self) -> None:
        """Asks it to end, and returns once it has, in good order."""
        process = self.server.process
        process.send(signal.SIGTERM)

        async def has_ended() -> bool:
            return process.status is not None

        await eventually_async(has_ended, within_s=SETTLE_S, what=f"the end of {self.name}")
        assert process.status == 0, f"{self.name} ended with {process.status}: {process.err}"

    async def get(self, path: str) -> Any:
        """What it answers to a GET; None when it does not."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as client:
                response = await client.get(f"{self.server.url}{path}")
        except httpx.TransportError:
            return None
        return response.json() if response.status_code == 200 else None


class Bed:
    """Nodes that share a database."""

    def __init__(self, directory: Path, database: PostgresServer) -> None:
        self.database = database
        self.store = database.dsn("postgres")
        self.nodes: list[BedNode] = []
        self._directory = directory

    async def begin(self, count: int, *steps: Step) -> None:
        """Makes an empty database, and starts so many nodes that share all its shards.

        With `steps`, each node's agents have a scripted model of these.
        """
        self.store = self.database.dsn(await self.database.create_database())
        for number in range(1, count + 1):
            name = f"node{number}"
            self.nodes.append(BedNode(name, self._directory / name, self.store))
            if steps:
                self.nodes[-1].node.script(*steps)
            await self.start(self.nodes[-1])
        await self.settled(*self.nodes)

    async def start(self, node: BedNode) -> None:
        """Starts a node, with a hint at one that runs."""
        others = [each.server.port for each in self.nodes if each.is_up]
        await node.start(others[0] if others else None)

    def ports(self) -> list[int]:
        """Where clients look for nodes, those included that are down."""
        return [node.server.port for node in self.nodes]

    async def shards(self) -> dict[str, int]:
        """How many shards each node owns, as the first says that answers; empty if none does."""
        for node in self.nodes:
            found = await node.get("/v1/cluster/shards") if node.is_up else None
            if found is not None:
                owners = [shard["node"] for shard in found["shards"]]
                return {owner: owners.count(owner) for owner in sorted(set(owners))}
        return {}

    async def owned_by(self, *nodes: BedNode) -> None:
        """Returns once every shard is owned by one of these, and each of these owns some."""
        wanted = {node.name for node in nodes}

        async def are_owners() -> bool:
            return set(await self.shards()) == wanted

        await eventually_async(are_owners, within_s=SETTLE_S, what=f"{wanted} own every shard")

    async def settled(self, *nodes: BedNode) -> None:
        """Returns once these own every shard and nothing is left to be moved."""
        await self.owned_by(*nodes)

        async def is_quiet() -> bool:
            shown = [await node.get("/v1/cluster") for node in nodes]
            return all(each is not None and each["unowned"] + each["moves"] == 0 for each in shown)

        await eventually_async(is_quiet, within_s=SETTLE_S, what="every shard where it should be")

    def close(self) -> None:
        """Ends every process, the stopped ones as well."""
        for node in self.nodes:
            node.node.close()
