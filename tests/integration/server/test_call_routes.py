"""Submitted calls over HTTP: handed in, waited for, taken back, listed, and held by a handle."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from kelpie import Remote
from kelpie.app.wire import ServerWire
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    ActorFailedError,
    CallBegunError,
    CallCancelledError,
    ConflictError,
    InvalidFieldError,
    KeyReusedError,
    NotFoundError,
    OrderError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.storage.records import CallEnd, Submission
from tests.integration.server.test_actor_routes import BASE, Counter, client, opened, runs
from tests.waiting import eventually_async

ADD = "/v1/actors/Counter/a/add"
ASYNC = {"prefer": "respond-async"}
WAIT = {"wait_s": 30}


async def submit(http: httpx.AsyncClient, amount: int = 1, **headers: str) -> dict[str, Any]:
    answer = await http.post(ADD, json={"amount": amount}, headers=ASYNC | headers)
    assert answer.status_code == 202, answer.text
    kept: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/calls/{kept['call_id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    return kept


async def is_taken(http: httpx.AsyncClient, path: str) -> bool:
    """Whether the call at this path lets itself be taken back."""
    return (await http.post(f"{path}/cancel")).status_code == 200


@pytest.mark.requirement("CALL-ONCE", "CALL-WAIT")
async def test_a_call_is_accepted_found_at_its_location_and_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path, drive=True) as app, client(app) as http:
        kept = await submit(http, 2)
        assert (kept["state"], kept["actor"], kept["method"]) == ("pending", "Counter/a", "add")
        assert (kept["ended_ms"], kept["expires_ms"], kept["result"]) == (None, None, None)
        ended = (await http.get(f"/v1/calls/{kept['call_id']}", params=WAIT)).json()
        assert (ended["state"], ended["result"], ended["error"]) == ("completed", 2, None)
        assert ended["expires_ms"] - ended["ended_ms"] == 86_400_000
        assert (await http.get("/v1/calls/call-none")).status_code == 404
        for wrong in ("-1", "61", "soon"):
            refused = await http.get(f"/v1/calls/{kept['call_id']}", params={"wait_s": wrong})
            assert refused.status_code == 422


async def test_only_the_known_preference_is_applied_and_only_to_commands(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        for prefer in ("wait=5", "respond-asynchronously", "return=minimal"):
            answer = await http.post(ADD, json={"amount": 1}, headers={"prefer": prefer})
            assert answer.status_code == 200
        several = await http.post(
            ADD, json={"amount": 1}, headers={"prefer": "wait=5, Respond-Async; x=1"}
        )
        assert several.status_code == 202
        asked = await http.post("/v1/actors/Counter/a/notes", headers=ASYNC)
        assert (asked.status_code, asked.json()) == (200, {"result": []})
        assert "preference-applied" not in asked.headers


async def test_a_wrong_submission_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        wrong = await http.post(ADD, json={"amount": "2"}, headers=ASYNC)
        assert (wrong.status_code, wrong.json()["error"]["fields"]["field"]) == (422, "body.amount")
        for path in ("/v1/actors/Counter/a/nothing", "/v1/actors/agent/a/agent.create"):
            assert (await http.post(path, json={}, headers=ASYNC)).status_code == 404
        assert (await http.get("/v1/calls")).json() == {"calls": [], "next_after": None}


@pytest.mark.requirement("CALL-KEY")
async def test_a_repeated_submission_under_its_key_has_the_same_location(tmp_path: Path) -> None:
    key = {"idempotency-key": "k"}
    async with opened(tmp_path) as app, client(app) as http:
        first = await submit(http, 2, **key)
    async with opened(tmp_path, drive=True) as app, client(app) as http:
        again = await submit(http, 2, **key)
        assert again["call_id"] == first["call_id"]
        other = await http.post(ADD, json={"amount": 3}, headers=ASYNC | key)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
        ended = (await http.get(f"/v1/calls/{first['call_id']}", params=WAIT)).json()
        assert ended["result"] == 2


@pytest.mark.requirement("CALL-CANCEL")
async def test_a_call_is_taken_back_once_for_all_or_the_answer_says_why_not(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, drive=True) as app, client(app, local=True) as http:
        await http.post("/v1/actor-admin/Counter/a/pause")
        kept = await submit(http)
        for _ in range(2):
            taken = await http.post(f"/v1/calls/{kept['call_id']}/cancel")
            assert (taken.status_code, taken.json()["state"]) == (200, "cancelled")
        await http.post("/v1/actor-admin/Counter/a/resume")
        lingering = await http.post("/v1/actors/Counter/a/linger", headers=ASYNC)
        await eventually_async(lambda: runs(http, "linger"), within_s=30, what="it to run")
        path = lingering.headers["location"]
        assert (await http.get(path)).json()["state"] == "running"
        refused = await http.post(f"{path}/cancel")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "call_begun")
        assert refused.json()["error"]["fields"]["state"] == "running"
        assert (await http.post("/v1/calls/call-none/cancel")).status_code == 404
        # Stopped while its actor is paused it waits again, and can be taken back after all.
        await http.post("/v1/actor-admin/Counter/a/pause")
        assert (await http.post("/v1/actor-admin/Counter/a/kill")).json()["killed"]
        await eventually_async(lambda: is_taken(http, path), within_s=30, what="it to be stopped")
        assert (await http.get(path)).json()["state"] == "cancelled"


async def test_calls_are_listed_by_cursor_actor_and_state(tmp_path: Path) -> None:
    async with opened(tmp_path, drive=True) as app, client(app, local=True) as http:
        await http.post("/v1/actor-admin/Counter/a/pause")
        ids = [(await submit(http))["call_id"] for _ in range(3)]
        await http.post(f"/v1/calls/{ids[1]}/cancel")
        first = (await http.get("/v1/calls", params={"limit": 2})).json()
        assert ([row["call_id"] for row in first["calls"]], first["next_after"]) == (
            ids[:2],
            ids[1],
        )
        rest = (await http.get("/v1/calls", params={"after": ids[1]})).json()
        assert ([row["call_id"] for row in rest["calls"]], rest["next_after"]) == (ids[2:], None)
        cancelled = (await http.get("/v1/calls", params={"state": "cancelled"})).json()["calls"]
        assert [row["call_id"] for row in cancelled] == [ids[1]]
        none = (await http.get("/v1/calls", params={"actor": "Counter/b"})).json()["calls"]
        assert none == []
        for wrong in ({"state": "running"}, {"actor": "Counter"}):
            assert (await http.get("/v1/calls", params=wrong)).status_code == 422


async def test_handles_over_http_are_the_same_as_in_process(tmp_path: Path) -> None:
    async with opened(tmp_path, drive=True) as app, client(app, local=True) as http:
        remote = Remote(ServerWire(http, BASE))
        counter = remote.ref(Counter, "a")
        handle = await counter.add.submit(2, note="x")
        assert await handle.result() == 2
        assert await counter.add.handle(handle.call_id).status() == "completed"
        refused = await counter.refuse.submit()
        with pytest.raises(ConflictError, match="not today") as error:
            await refused.result()
        assert error.value.fields == {"day": "monday"}
        once = remote.ref(Counter, "a", idempotency_key="k")
        first, second = await once.add.submit(1), await once.add.submit(1)
        assert first.call_id == second.call_id
        with pytest.raises(KeyReusedError):
            await once.add.submit(2)
        with pytest.raises(CallBegunError):
            await handle.cancel()
        with pytest.raises(OrderError):
            await counter.notes.submit()
        with pytest.raises(InvalidFieldError, match="is a call of add"):
            await counter.refuse.handle(handle.call_id).status()
        with pytest.raises(NotFoundError):
            await counter.add.handle("call-none").cancel()
        await first.result()
        await http.post("/v1/actor-admin/Counter/a/pause")
        waiting = await counter.add.submit(1)
        (listed,) = await remote.calls.find(actor="Counter/a", state="pending")
        assert (listed.call_id, listed.state) == (waiting.call_id, "pending")
        await waiting.cancel()
        with pytest.raises(CallCancelledError):
            await waiting.result()


@pytest.mark.requirement("CALL-ENDS")
async def test_a_call_that_failed_too_often_is_dead_with_its_error_and_its_letter(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, drive=True) as app, client(app) as http:
        handle = await Remote(ServerWire(http, BASE)).ref(Counter, "a").fail.submit()
        with pytest.raises(ActorFailedError):
            await handle.result(timeout_s=60)
        shown = (await http.get(f"/v1/calls/{handle.call_id}")).json()
        assert (shown["state"], shown["error"]["code"]) == ("dead", "actor_failed")
        (letter,) = (await http.get("/v1/dead-letters")).json()["dead_letters"]
        assert (letter["sender"], letter["receiver"]) == ("kelpie.caller/p:anonymous", "Counter/a")
        assert "ZeroDivisionError" in letter["error"]
        assert letter["built_in"] is False
        of_others = await http.get("/v1/dead-letters", params={"type": "Other"})
        assert of_others.json()["dead_letters"] == []


async def test_letters_to_types_of_kelpies_own_are_listed_without_what_they_say(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as app, client(app, local=True) as http:
        agent = ActorId(TENANT_DEFAULT, "agent", "agent-1")
        epochs = {grant.shard: grant.epoch for grant in app.node.store.grants()}
        submission = Submission(
            call_id="call-1",
            actor=agent,
            method="m",
            sender=ActorId(TENANT_DEFAULT, "plan", "plan-1"),
            principal="local",
            key="",
            request=digest_bytes(b""),
            body=msgspec.msgpack.encode({"secret": 1}),
            now_ms=1,
        )
        kept = await app.node.store.submit_call(submission, epoch=epochs[agent.shard])
        end = CallEnd("dead", b"", 1, 2)
        await app.node.store.end_call(kept.message_id, end, error="it failed")
        for asked in ({}, {"type": "agent"}):
            (letter,) = (await http.get("/v1/dead-letters", params=asked)).json()["dead_letters"]
            assert (letter["built_in"], letter["body"]) == (True, None)
            assert (letter["receiver"], letter["error"]) == ("agent/agent-1", "it failed")
        others = await http.get("/v1/dead-letters", params={"type": "Counter"})
        assert others.json()["dead_letters"] == []


async def test_a_wait_ends_when_the_server_begins_to_drain(tmp_path: Path) -> None:
    async with opened(tmp_path, drive=True) as app, client(app, local=True) as http:
        await http.post("/v1/actor-admin/Counter/a/pause")
        kept = await submit(http)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(http.get(f"/v1/calls/{kept['call_id']}", params=WAIT))
            await asyncio.sleep(0)
            app.node.runtime.close_gate()
        assert waiting.result().json()["state"] == "pending"


async def test_the_list_of_actors_says_who_is_paused(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app, local=True) as http:
        for key in "ab":
            await http.post(f"/v1/actors/Counter/{key}/add", json={"amount": 1})
        await http.post("/v1/actor-admin/Counter/b/pause")
    async with opened(tmp_path) as app, client(app, local=True) as http:
        rows = (await http.get("/v1/actors")).json()["actors"]
        assert [(row["key"], row["paused"]) for row in rows] == [("a", False), ("b", True)]
        records = (await http.get("/v1/audit")).json()["records"]
        noted = [(each["kind"], each["actor"], each["principal"]) for each in records]
        assert noted == [("actor.paused", "default/Counter/b", "local")]
