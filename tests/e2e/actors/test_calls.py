"""Submitted calls under `kelpie serve`: by command, route and handle, and through real SIGKILLs.

Clients submit and take back while the server is killed at moments that a seed draws. Afterwards
every acknowledged submission is one call, every call has ended, and each actor has counted exactly
what was not taken back.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import kelpie
from kelpie.core.errors import CallBegunError
from tests.e2e.actors.program import Counter
from tests.e2e.support.node import Server, free_port, has_begun
from tests.waiting import eventually, eventually_async

if TYPE_CHECKING:
    from tests.e2e.support.node import Node
    from tests.e2e.support.processes import Process

PROGRAM = str(Path(__file__).with_name("program.py"))
MISSING, CONFLICT, INPUT = 4, 5, 2
ASYNC = {"prefer": "respond-async"}
KILLS = 6
CLIENTS = 12
ACTORS = 8
LIFE_S = 1.0  # a kill is drawn from it, counted from when the server answers
START_S = 30.0
END_S = 60.0


@pytest.fixture(scope="module")
def server(shared: Node) -> Server:
    return shared.serve(PROGRAM)


def has_ended(server: Server) -> bool:
    """Whether the server's process is gone."""
    return server.process.status is not None


@pytest.mark.covers(
    "kelpie actors submit", "kelpie calls show", "kelpie calls list", "kelpie calls cancel"
)
def test_calls_are_submitted_shown_listed_and_taken_back_from_the_command_line(
    shared: Node, server: Server
) -> None:
    add = ("actors", "submit", "Counter/cli", "add", '{"amount": 2}', "--key", "k")
    kept = shared.ok(*add)
    assert shared.cli(*add).out.strip() == kept["call_id"]
    ended = shared.ok("calls", "show", kept["call_id"], "--wait", "30")
    assert (ended["state"], ended["result"]) == ("completed", 2)
    begun = shared.cli("calls", "cancel", kept["call_id"], "--json")
    assert (begun.status, begun.error["code"]) == (CONFLICT, "call_begun")
    shared.ok("actors", "pause", "Counter/cli")
    waiting = shared.ok("actors", "submit", "Counter/cli", "add", '{"amount": 1}')
    assert shared.ok("calls", "cancel", waiting["call_id"])["state"] == "cancelled"
    shared.ok("actors", "resume", "Counter/cli")
    listed = shared.ok("calls", "list", "--actor", "Counter/cli", "--state", "cancelled")
    assert [row["call_id"] for row in listed] == [waiting["call_id"]]
    nobody = shared.cli("calls", "show", "call-none", "--json")
    assert (nobody.status, nobody.error["code"]) == (MISSING, "not_found")
    asked = shared.cli("actors", "submit", "Counter/cli", "total", "--json")
    assert (asked.status, asked.error["code"]) == (INPUT, "invalid_field")
    assert shared.ok("actors", "call", "Counter/cli", "total") == {"result": 2}


@pytest.mark.covers("GET /v1/calls", "GET /v1/calls/{id}", "POST /v1/calls/{id}/cancel")
def test_the_routes_keep_show_list_and_take_back_calls(server: Server) -> None:
    path = "/v1/actors/Counter/routes/add"
    accepted = server.ask("POST", path, json={"amount": 3}, headers=ASYNC)
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    assert server.get(location, wait_s=30)["result"] == 3
    assert server.ask("POST", f"{location}/cancel").status_code == 409
    listed = server.get("/v1/calls", actor="Counter/routes")["calls"]
    assert [row["call_id"] for row in listed] == [accepted.json()["call_id"]]


@pytest.mark.requirement("CALL-DURABLE", "CALL-CANCEL", "ACTOR-PAUSE-SURVIVES")
def test_handles_pauses_and_cancellations_hold_across_a_sigkill(node: Node) -> None:
    async def submit(server: Server) -> list[str]:
        async with kelpie.connect(server.url) as remote:
            counter = remote.ref(Counter, "a")
            handles = [await counter.add.submit(10**number) for number in range(3)]
            await handles[1].cancel()
            assert await handles[0].status() == "pending"
            return [handle.call_id for handle in handles]

    async def collect(server: Server, ids: list[str]) -> list[int]:
        async with kelpie.connect(server.url) as remote:
            first, second, third = (remote.ref(Counter, "a").add.handle(each) for each in ids)
            assert await second.status() == "cancelled"
            results = [await first.result(), await third.result()]
            with pytest.raises(CallBegunError):
                await third.cancel()
            return results

    server = node.serve(PROGRAM)
    node.ok("actors", "pause", "Counter/a")
    ids = asyncio.run(submit(server))
    server.process.send(signal.SIGKILL)
    eventually(partial(has_ended, server), within_s=START_S, what="the server's end")
    again = node.serve(PROGRAM)
    assert node.ok("actors", "show", "Counter/a")["paused"]
    node.ok("actors", "resume", "Counter/a")
    assert asyncio.run(collect(again, ids)) == [1, 101]
    kinds = [record["kind"] for record in again.get("/v1/audit")["records"]]
    assert kinds == ["actor.paused", "actor.resumed"]
    assert again.get("/v1/audit/verify")["ok"]


class Storm:
    """A server in its many lives, and clients that submit and take back."""

    def __init__(self, node: Node, draw: random.Random) -> None:
        self.kills = 0
        self.lost = 0
        self.submitted: dict[str, str] = {}
        self._node = node
        self._draw = draw
        self._port = free_port()
        self._up = asyncio.Event()

    @property
    def url(self) -> str:
        """Where the server of this moment answers."""
        return f"http://127.0.0.1:{self._port}"

    async def live_and_die(self) -> None:
        """Start the server, kill it at a drawn moment, and so on; the last life goes on."""
        loop = asyncio.get_running_loop()
        while True:
            process = await self._start()
            self._up.set()
            if self.kills == KILLS:
                return
            loop.call_later(self._draw.uniform(0, LIFE_S), process.send, signal.SIGKILL)
            await self._until_dead(process)
            self._up.clear()
            self.kills += 1

    async def _start(self) -> Process:
        process = self._node.kelpie("serve", PROGRAM, "--port", str(self._port), "--json")

        async def has_begun_by_now() -> bool:
            return has_begun(process)

        await eventually_async(has_begun_by_now, within_s=START_S, what="the server to answer")
        assert process.out, process.err
        return process

    async def _until_dead(self, process: Process) -> None:
        async def is_dead() -> bool:
            return process.status is not None

        await eventually_async(is_dead, within_s=START_S, what="the server's end")

    async def work(self, number: int) -> None:
        """Submit under one key after another; take some back again."""
        draw = random.Random(self._draw.random())
        count = 0
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http:
            while self.kills < KILLS:
                key = f"{number}-{count}"
                actor = draw.randrange(ACTORS)
                kept = await self._insist(
                    http,
                    f"/v1/actors/Counter/c{actor}/add",
                    {"amount": 1},
                    ASYNC | {"idempotency-key": key},
                )
                assert self.submitted.setdefault(key, kept["call_id"]) == kept["call_id"]
                if draw.random() < 0.3:
                    await self._insist(http, f"/v1/calls/{kept['call_id']}/cancel", {}, {})
                count += 1

    async def _insist(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> dict[str, Any]:
        """Send a request, again and again, until it is answered."""
        while True:
            await self._up.wait()
            try:
                answer = await http.post(path, json=body, headers=headers, timeout=END_S)
            except httpx.TransportError:
                self.lost += 1
                await asyncio.sleep(0)
                continue
            assert answer.status_code in {200, 202, 409}, answer.text
            found: dict[str, Any] = answer.json()
            return found

    async def ends(self) -> list[dict[str, Any]]:
        """Return every call, each once it has ended."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=END_S) as http:
            rows: list[dict[str, Any]] = []
            after: str | None = None
            while True:
                asked = {"limit": 1_000} | ({"after": after} if after else {})
                page = (await http.get("/v1/calls", params=asked)).json()
                rows += page["calls"]
                after = page["next_after"]
                if after is None:
                    break
            shown = [
                await http.get(f"/v1/calls/{row['call_id']}", params={"wait_s": 60}) for row in rows
            ]
            return [each.json() for each in shown]

    async def total(self, actor: str) -> int:
        """Return what the actor has counted."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=END_S) as http:
            return int((await http.post(f"/v1/actors/{actor}/total", json={})).json()["result"])


async def storm_through(node: Node, seed: int) -> None:
    storm = Storm(node, random.Random(seed))
    async with asyncio.TaskGroup() as group:
        group.create_task(storm.live_and_die())
        for number in range(CLIENTS):
            group.create_task(storm.work(number))
    ended = await storm.ends()
    assert {each["call_id"] for each in ended} >= set(storm.submitted.values())
    assert len(ended) == len({each["call_id"] for each in ended})
    # A submission whose answer was lost was sent again under its key, so there are no others.
    assert len(ended) == len(storm.submitted)
    counted: defaultdict[str, list[int]] = defaultdict(list)
    cancelled = 0
    for each in ended:
        assert each["state"] in {"completed", "cancelled"}, each
        if each["state"] == "completed":
            counted[each["actor"]].append(each["result"])
        else:
            cancelled += 1
    for actor, results in counted.items():
        # Each was answered with the total that it made: all of them, each once.
        assert sorted(results) == list(range(1, len(results) + 1)), actor
        assert await storm.total(actor) == len(results), actor
    assert storm.lost >= KILLS, "the kills met nobody"
    assert len(ended) > CLIENTS, "the load was no load"
    print(f"{storm.kills} kills, {len(ended)} calls, {cancelled} taken back, {storm.lost} lost")


@pytest.mark.timeout(240)
@pytest.mark.requirement("CALL-DURABLE", "CALL-ONCE", "CALL-KEY", "CALL-CANCEL")
def test_kills_at_any_moment_lose_no_call_and_double_none(node: Node) -> None:
    seed = int(os.environ.get("KELPIE_E2E_SEED") or random.SystemRandom().randrange(2**32))
    print(f"KELPIE_E2E_SEED={seed}")
    asyncio.run(storm_through(node, seed))
