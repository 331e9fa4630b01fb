"""Two nodes in one process over one database: either answers any request for any actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx
import pytest

from kelpie import Actor, State, command, query, ref
from kelpie.app.opened import App, open_app
from kelpie.cluster.messages import EdgeCall
from kelpie.core.errors import ConflictError, NotOwnerError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import SHARD_COUNT
from kelpie.server.app import App as Edge
from kelpie.server.auth import LOCAL_SCOPE
from kelpie.settings import load_settings
from tests.postgres import shared_server
from tests.waiting import eventually_async

BASE = "http://127.0.0.1:8283"
ASYNC = {"prefer": "respond-async"}
ADD = {"amount": 2}


class Sum(State):
    """What was added."""

    total: int = 0


class Adder(Actor[Sum]):
    """Adds, and has others add."""

    @command
    def add(self, amount: int) -> int:
        """Add, and return the sum."""
        self.state.total += amount
        return self.state.total

    @query
    def total(self) -> int:
        """Return the sum."""
        return self.state.total

    @command
    async def add_to(self, other: str, amount: int) -> int:
        """Have another add, and look at what it has then."""
        await ref(Adder, other).add(amount)
        return await ref(Adder, other).total()

    @command
    async def add_back(self, other: str, back: str) -> int:
        """Have another call whoever is named."""
        return await ref(Adder, other).add_to(back, 1)


class Two(NamedTuple):
    """Both nodes, and a caller of each: over the socket at the first, over TCP at the second."""

    one: App
    two: App
    local: httpx.AsyncClient
    remote: httpx.AsyncClient


def caller(app: App, *, is_local: bool) -> httpx.AsyncClient:
    async def owned(scope: Any, receive: Any, send: Any) -> None:
        await app.asgi({**scope, LOCAL_SCOPE: is_local}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=cast("Any", owned)), base_url=BASE)


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[Two]:
    server = shared_server()
    database = await server.create_database()
    (folder / "kelpie.toml").write_text(
        "model = 'vllm/none'\n[providers.vllm]\nwire = 'openai'\nbase_url = 'http://127.0.0.1:9'\n"
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.drop_database, database)
        apps: list[App] = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            environment = {
                "KELPIE_DATA_DIR": str(folder / name / "data"),
                "KELPIE_NODE": name,
                "KELPIE_STORE": server.dsn(database),
                "KELPIE_LOG": "error",
            }
            settings = load_settings(environment=environment, cwd=folder, home=folder)
            opening = open_app(settings, drive=True, actors=(Adder,))
            apps.append(await stack.enter_async_context(opening))
        one, two = apps

        async def is_shared() -> bool:
            owned = [len(app.node.runtime.ownership.grants()) for app in apps]
            return min(owned) > SHARD_COUNT // 8 and sum(owned) == SHARD_COUNT

        await eventually_async(is_shared, within_s=60, what="the shards to be shared")
        local = await stack.enter_async_context(caller(one, is_local=True))
        remote = await stack.enter_async_context(caller(two, is_local=False))
        yield Two(one, two, local, remote)


def key_of(app: App, *, but: str = "") -> str:
    """Return the key of an adder that this node owns."""
    owns = app.node.runtime.ownership.owns
    keys = (f"k{number}" for number in range(10_000))
    return next(
        key for key in keys if key != but and owns(ActorId(TENANT_DEFAULT, "Adder", key).shard)
    )


async def ok(http: httpx.AsyncClient, method: str, path: str, **given: Any) -> Any:
    answer = await http.request(method, path, **given)
    assert answer.is_success, answer.text
    return answer.json()


@pytest.mark.requirement("CLUSTER-ANY-NODE", "CLUSTER-FORWARDED-ONCE")
async def test_care_and_submitted_calls_work_at_the_node_that_does_not_own_the_actor(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as nodes:
        local, remote, key = nodes.local, nodes.remote, key_of(nodes.two)
        actor, admin = f"/v1/actors/Adder/{key}", f"/v1/actor-admin/Adder/{key}"
        assert (await ok(local, "POST", f"{actor}/add", json=ADD)) == {"result": 2}
        assert (await ok(local, "POST", f"{admin}/pause"))["paused"]
        for http in (local, remote):
            assert (await ok(http, "GET", actor))["paused"]
            assert [row["paused"] for row in (await ok(http, "GET", "/v1/actors"))["actors"]] == [
                True
            ]
        headers = ASYNC | {"idempotency-key": "k"}
        kept = await local.post(f"{actor}/add", json=ADD, headers=headers)
        assert kept.status_code == 202, kept.text
        path = kept.headers["location"]
        again = await remote.post(f"{actor}/add", json=ADD, headers=headers)
        assert again.json()["call_id"] == kept.json()["call_id"]
        other = await ok(local, "POST", f"{actor}/add", json=ADD, headers=ASYNC)
        cancelled = await ok(local, "POST", f"/v1/calls/{other['call_id']}/cancel")
        assert cancelled["state"] == "cancelled"
        assert (await ok(local, "GET", path))["state"] == "pending"
        waiting = asyncio.ensure_future(ok(local, "GET", path, params={"wait_s": 60}))
        assert not (await ok(local, "POST", f"{admin}/resume"))["paused"]
        ended = await waiting
        assert (ended["state"], ended["result"]) == ("completed", 4)
        assert (await ok(local, "POST", f"{admin}/kill"))["killed"] in {True, False}
        assert (await ok(remote, "POST", f"{actor}/total")) == {"result": 4}


async def test_what_the_first_node_found_about_the_caller_holds_at_the_owner(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as nodes:
        key = key_of(nodes.one)
        refused = await nodes.remote.post(f"/v1/actor-admin/Adder/{key}/pause")
        assert refused.json()["error"]["code"] == "key_needed"
        missing = await nodes.remote.post(f"/v1/actors/Adder/{key}/nothing", headers=ASYNC)
        assert missing.status_code == 404
        await ok(nodes.remote, "POST", f"/v1/actors/Adder/{key}/add", json=ADD, headers=ASYNC)
        (row,) = (await ok(nodes.local, "GET", "/v1/calls"))["calls"]
        assert row["principal"] == "anonymous"


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
async def test_a_peer_may_ask_only_for_what_is_done_at_an_owner_and_it_goes_no_further(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as nodes:
        edge = cast("Edge", nodes.one.asgi)

        def passed(path: str, body: bytes = b"") -> EdgeCall:
            who = ("default", "local", True, "k", False)
            return EdgeCall("POST", path, b"", body, *who)

        target = tmp_path / "stolen"
        backup = passed("/v1/store/backup", b'{"target":"%s"}' % str(target).encode())
        with pytest.raises(ConflictError, match="for the node that was asked"):
            await edge.answer_passed(backup, 1_000)
        assert not target.exists()
        foreign = key_of(nodes.two)
        with pytest.raises(NotOwnerError) as refused:
            await edge.answer_passed(passed(f"/v1/actor-admin/Adder/{foreign}/pause"), 1_000)
        assert refused.value.retriable
        assert not nodes.two.node.runtime.is_paused(ActorId(TENANT_DEFAULT, "Adder", foreign))


async def test_a_handler_calls_actors_of_other_nodes_and_no_chain_comes_back_to_itself(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as nodes:
        here, there = key_of(nodes.one), key_of(nodes.two)
        path = f"/v1/actors/Adder/{here}"
        body = {"other": there, "amount": 5}
        assert await ok(nodes.local, "POST", f"{path}/add_to", json=body) == {"result": 5}
        assert await ok(nodes.remote, "POST", f"{path}/add_to", json=body) == {"result": 10}
        circle = await nodes.remote.post(f"{path}/add_back", json={"other": there, "back": here})
        assert circle.json()["error"]["code"] == "call_cycle"
        further = {"other": there, "back": key_of(nodes.one, but=here)}
        assert await ok(nodes.local, "POST", f"{path}/add_back", json=further) == {"result": 1}
