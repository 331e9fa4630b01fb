"""Counting under real SIGKILLs: every acknowledged increment is there, none lost, none double.

Sixty-four clients add to a thousand actors while the server is killed at moments that a seed draws
and started again. A client that lost its connection sends the same request again under the same
idempotency key, until it is answered: the server may have done it already, or not.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from pathlib import Path

import pytest

from bench.load import Client, LoadError, encode_request
from tests.e2e.support.node import Node, free_port, has_begun
from tests.e2e.support.processes import Process
from tests.waiting import eventually_async

KILLS = 20
CLIENTS = 64
ACTORS = 1_000
LIFE_S = 1.5  # a kill is drawn from it, counted from when the server answers
START_S = 30.0
ANSWER_S = 30.0
PROGRAM = Path(__file__).with_name("program.py")


class Counting:
    """The server in its many lives, and what was acknowledged to its clients."""

    def __init__(self, node: Node, draw: random.Random) -> None:
        self.kills = 0
        self.retries = 0
        self.acknowledged: defaultdict[int, list[int]] = defaultdict(list)
        self._node = node
        self._draw = draw
        self._port = free_port()
        self._up = asyncio.Event()
        self._processes: list[Process] = []

    @property
    def is_over(self) -> bool:
        """Whether all kills are spent."""
        return self.kills == KILLS

    async def live_and_die(self) -> None:
        """Start the server, kill it at a drawn moment, and so on; the last life goes on."""
        loop = asyncio.get_running_loop()
        while True:
            process = await self._start()
            self._up.set()
            if self.is_over:
                return
            delay_s = self._draw.uniform(0, LIFE_S)
            loop.call_later(delay_s, process.send, signal.SIGKILL)
            await self._until_dead(process)
            self._up.clear()
            self.kills += 1

    async def restart(self) -> None:
        """Kill the server once more, when nobody calls it, and start it again."""
        self._processes[-1].kill()
        await self._start()

    async def _start(self) -> Process:
        process = self._node.kelpie("serve", str(PROGRAM), "--port", str(self._port), "--json")
        self._processes.append(process)

        async def has_begun_by_now() -> bool:
            return has_begun(process)

        await eventually_async(has_begun_by_now, within_s=START_S, what="the server to answer")
        assert process.out, process.err
        return process

    async def _until_dead(self, process: Process) -> None:
        async def is_dead() -> bool:
            return process.status is not None

        await eventually_async(is_dead, within_s=START_S, what="the server's end")
        assert process.status == -signal.SIGKILL, process.err

    # --- clients --------------------------------------------------------------------------------

    async def work(self, number: int) -> None:
        """Add to one actor after another until all kills are spent."""
        draw = random.Random(self._draw.random())
        connection: Client | None = None
        count = 0
        while not self.is_over:
            actor = draw.randrange(ACTORS)
            key = f"{number}-{count}"
            request = encode_request("POST", path(actor, "add"), {"amount": 1}, key=key)
            connection, total = await self._insist(connection, request)
            self.acknowledged[actor].append(total)
            count += 1
        if connection is not None:
            connection.close()

    async def _insist(self, connection: Client | None, request: bytes) -> tuple[Client, int]:
        """Send a request, again and again, until it is answered."""
        while True:
            await self._up.wait()
            try:
                if connection is None:
                    connection = await Client.connect(self._port)
                async with asyncio.timeout(ANSWER_S):
                    answer = await connection.ask(request)
            except (OSError, LoadError):
                if connection is not None:
                    self.retries += 1
                    connection.close()
                connection = None
                # The server's end may be seen here before whoever killed it sees it.
                await asyncio.sleep(0)
            else:
                assert answer.status == 200, answer.body
                return connection, int(answer.read_json()["result"])

    async def read(self, actor: int) -> int:
        """Return what the actor has counted."""
        client = await Client.connect(self._port)
        try:
            answer = await client.ask(encode_request("POST", path(actor, "total"), {}))
        finally:
            client.close()
        return int(answer.read_json()["result"])


def path(actor: int, method: str) -> str:
    """The route of an actor's method."""
    return f"/v1/actors/Counter/c{actor}/{method}"


async def count_through_kills(node: Node, seed: int) -> None:
    counting = Counting(node, random.Random(seed))
    async with asyncio.TaskGroup() as group:
        group.create_task(counting.live_and_die())
        for number in range(CLIENTS):
            group.create_task(counting.work(number))
    await counting.restart()
    for actor in range(ACTORS):
        replies = sorted(counting.acknowledged[actor])
        # Each increment was answered with the total that it made: all of them, each once.
        assert replies == list(range(1, len(replies) + 1)), f"c{actor}"
        assert await counting.read(actor) == len(replies), f"c{actor}"
    total = sum(map(len, counting.acknowledged.values()))
    assert len(counting.acknowledged) > ACTORS // 2, "the load was no load"
    assert counting.retries >= KILLS, "the kills met nobody"
    print(f"{counting.kills} kills, {total} increments, {counting.retries} sent again")


@pytest.mark.timeout(240)
@pytest.mark.requirement("CRASH-INCREMENTS")
def test_twenty_kills_under_load_lose_no_increment_and_double_none(node: Node) -> None:
    seed = int(os.environ.get("KELPIE_E2E_SEED") or random.SystemRandom().randrange(2**32))
    print(f"KELPIE_E2E_SEED={seed}")
    asyncio.run(count_through_kills(node, seed))
