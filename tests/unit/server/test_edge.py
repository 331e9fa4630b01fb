"""What the edge refuses, and how it says so."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import ConflictError, DeadlineError, DiskFullError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import EVENT_BYTES_MAX, EVENT_PAGE_ROWS_MAX, REQUEST_BODY_BYTES_MAX
from kelpie.server.app import REQUEST_ID_BYTES, REQUEST_IDS_DRAWN
from kelpie.server.auth import LOCAL_SCOPE
from kelpie.server.errors import error_response
from kelpie.server.http import Receive, Scope, Send, encode_event
from kelpie.server.ops.events import count_ahead
from kelpie.server.ports import ApiKey
from kelpie.storage.records import StoredEvent
from tests.unit.server.world import FakeRng, World, agent_id_of, make_record, require_error

IMAGE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
AGENT = "agent-00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"name": "\xff"}', 400, "invalid_json"),
        (b'{"name": "\\ud800"}', 400, "invalid_json"),
        (b'{"metadata": {"a": ' + b"[" * 100_000, 400, "invalid_json"),
        (b"[]", 422, "invalid_field"),
        (b'{"name": 3}', 422, "invalid_field"),
        (b'{"name": ""}', 422, "invalid_field"),
        (b'{"naem": "x"}', 422, "invalid_field"),
        (b'{"memory_blocks": [{"label": "x"}]}', 422, "invalid_field"),
        (b'{"metadata": {"n": 100000000000000000000}}', 422, "invalid_field"),
        (b'{"context_window_limit": 0}', 422, "invalid_field"),
        (b'{"tools": ["no_such_tool"]}', 422, "invalid_field"),
        (b'{"tool_rules": [{"type": "x"}]}', 422, "invalid_field"),
    ],
)
async def test_a_bad_body_is_refused_by_field_and_changes_nothing(
    content: bytes, status: int, code: str
) -> None:
    world = World()
    async with world.client() as http:
        error = require_error(await http.post("/v1/agents/", content=content), status, code)
    assert error["fields"]["field"].startswith("body")
    assert not world.told


async def test_a_long_name_is_refused_with_its_limit() -> None:
    async with World().client() as http:
        response = await http.post("/v1/agents", json={"name": "x" * 10_000})
    assert "256" in require_error(response, 422, "invalid_field")["message"]
    assert response.json()["detail"][0]["loc"] == ["body", "name"]


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    world = World()
    reads = 0

    async def receive() -> Any:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    announced = await drive(
        world, receive, headers=[(b"content-length", b"%d" % (REQUEST_BODY_BYTES_MAX + 1))]
    )
    assert (announced, reads) == (413, 0)
    assert await drive(world, receive, headers=[]) == 413
    assert reads == REQUEST_BODY_BYTES_MAX // 65_536 + 1


async def drive(world: World, receive: Receive, *, headers: Any) -> int:
    """Post to the agents' route and return the status."""
    statuses: list[int] = []

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/agents",
        "query_string": b"",
        "headers": headers,
    }
    await world.app()(scope, receive, send)
    [status] = statuses
    return status


async def test_unknown_paths_and_methods_are_typed_and_name_what_is_allowed() -> None:
    async with World().client() as http:
        require_error(await http.get("/v1/nothing"), 404, "route_not_found")
        require_error(await http.get("/v1//agents"), 404, "route_not_found")
        refused = await http.put("/v1/agents/")
        require_error(refused, 405, "method_not_allowed")
        head = await http.head("/v1/health")
    assert refused.headers["allow"] == "GET, HEAD, POST"
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0


async def test_ids_that_are_no_uuids_are_refused_and_unknown_ones_not_found() -> None:
    async with World().client() as http:
        require_error(await http.get("/v1/agents/agent-x"), 422, "invalid_field")
        require_error(await http.get(f"/v1/agents/{AGENT}"), 404, "not_found")
        run = "run-00000000-0000-4000-8000-000000000000"
        require_error(await http.get(f"/v1/runs/{run}"), 404, "not_found")
        require_error(await http.get("/v1/agents?after=agent-1"), 422, "invalid_field")
        require_error(await http.get("/v1/agents?limit=0"), 422, "invalid_field")
        require_error(await http.get("/v1/agents?limit=1&limit=2"), 422, "invalid_field")
        require_error(await http.get("/v1/agents?identity_id=x"), 422, "invalid_field")
        require_error(await http.get("/v1/agents/%ff"), 422, "invalid_field")


async def test_an_agent_without_any_model_is_refused_before_it_exists() -> None:
    world = World(model_default="")
    async with world.client() as http:
        error = require_error(await http.post("/v1/agents", json={}), 422, "invalid_field")
        named = await http.post("/v1/agents", json={"model": "openai/scripted"})
    assert error["fields"]["field"] == "body.model"
    assert "OPENAI_API_KEY" in error["message"]
    assert named.status_code == 200
    assert len(world.agents) == 1


async def test_a_model_of_a_provider_that_is_not_configured_is_refused() -> None:
    world = World()
    async with world.client() as http:
        body = {"model": "nowhere/x"}
        error = require_error(await http.post("/v1/agents", json=body), 422, "invalid_field")
        assert "are: anthropic, openai; set its key's variable" in error["message"]
        made = (await http.post("/v1/agents", json={"model": "openai/scripted"})).json()
        path = f"/v1/agents/{made['id']}"
        require_error(await http.patch(path, json=body), 422, "invalid_field")
        kept = (await http.get(path)).json()
    assert (kept["model"], len(world.agents)) == ("openai/scripted", 1)


@pytest.mark.requirement("ACTOR-DRAIN", "K-22")
async def test_a_draining_server_refuses_at_once_and_still_shows_metrics() -> None:
    world = World(is_accepting=False)
    async with world.client() as http:
        refused = await http.post("/v1/agents", json={})
        metrics = await http.get("/metrics")
        require_error(await http.get("/v1/health/"), 503, "draining")
    require_error(refused, 503, "draining")
    assert refused.headers["x-should-retry"] == "true"
    assert metrics.text == "kelpie_up 1\n"
    assert not world.told


@pytest.mark.requirement("SERVER-KEYS")
async def test_keys_are_demanded_where_they_are_configured() -> None:
    key = ApiKey(name="ops", digest=digest_bytes(b"secret"))
    world = World(api_keys=(key,))
    async with world.client() as http:
        refused = await http.get("/v1/agents")
        require_error(refused, 401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        wrong = await http.get("/v1/agents", headers={"authorization": "Bearer secre"})
        require_error(wrong, 401, "unauthorized")
        assert (await http.get("/v1/health")).status_code == 200
        require_error(await http.get("/metrics"), 401, "unauthorized")
        auth = {"authorization": "Bearer secret"}
        assert (await http.post("/v1/agents", json={}, headers=auth)).status_code == 200
    assert world.told[0][1] == "key:ops"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": "http://127.0.0.1:8283"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://evil.example", "host": "evil.example"}, False),
        ({"sec-fetch-site": "same-origin", "host": "evil.example:8283"}, False),
        ({"sec-fetch-site": "same-origin", "host": "[::1]:8283"}, True),
    ],
)
async def test_without_keys_only_this_hosts_own_pages_are_served(
    headers: dict[str, str], allowed: bool
) -> None:
    async with World().client() as http:
        response = await http.get("/v1/agents", headers=headers)
    assert (response.status_code == 200) is allowed, response.text


async def test_the_same_key_names_the_same_objects() -> None:
    world = World()
    async with world.client() as http:
        headers = {"idempotency-key": "k1"}
        first = await http.post("/v1/agents", json={"name": "n"}, headers=headers)
        again = await http.post("/v1/agents", json={"name": "n"}, headers=headers)
        other = await http.post("/v1/agents", json={"name": "n"})
        bad = await http.post("/v1/agents", json={}, headers={"idempotency-key": "x" * 256})
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert [key for _, _, key in world.told] == ["k1", "k1", None]
    require_error(bad, 422, "invalid_field")


@pytest.mark.requirement("ACTOR-IDEMPOTENCY-KEY")
async def test_a_message_repeated_under_its_key_gets_the_same_answer() -> None:
    world = World()
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        path = f"/v1/agents/{agent_id_of(world).key}/messages"
        headers = {"idempotency-key": "k1"}
        first = await http.post(path, json={"input": "hi"}, headers=headers)
        again = await http.post(path, json={"input": "hi"}, headers=headers)
    assert first.status_code == 200
    assert again.json() == first.json()


async def test_a_client_may_repeat_only_what_cannot_have_happened() -> None:
    world = World()
    async with world.client() as http:
        world.failure = DeadlineError("late")
        late = await http.post("/v1/agents", json={})
        keyed = await http.post("/v1/agents", json={}, headers={"idempotency-key": "k"})
        world.failure = DiskFullError("full")
        full = await http.post("/v1/agents", json={})
        world.failure = RuntimeError("a bug")
        bug = await http.post("/v1/agents", json={}, headers={"x-request-id": "r-7"})
    assert [r.headers["x-should-retry"] for r in (late, keyed, full, bug)] == [
        "false",
        "true",
        "true",
        "false",
    ]
    assert "r-7" in require_error(bug, 500, "internal")["message"]
    assert bug.headers["x-request-id"] == "r-7"
    assert world.telemetry.logs[0]["event"] == "http.request_failed"


class SpreadRng(FakeRng):
    """Bytes that differ at every place, as those of a real generator do."""

    def bytes(self, count: int) -> bytes:
        return hashlib.shake_128(super().bytes(16)).digest(count)


async def test_every_request_has_an_id_of_its_own() -> None:
    async with World(rng=SpreadRng()).client() as http:
        answers = [await http.get("/v1/health/") for _ in range(3 * REQUEST_IDS_DRAWN)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)
    assert {len(each) for each in ids} == {2 * REQUEST_ID_BYTES}


async def test_a_failed_run_is_a_typed_answer_that_must_not_be_repeated() -> None:
    def fail(w: World, agent: Any, run: Any) -> None:
        w.finish(agent, run, status="failed", stop_reason="llm_api_error", error="the model is off")

    world = World(script=fail)
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        path = f"/v1/agents/{agent_id_of(world).key}/messages"
        failed = await http.post(path, json={"input": "hi"})
        streamed = await http.post(f"{path}/stream", json={"input": "hi"})
    assert require_error(failed, 502, "run_failed")["fields"]["stop_reason"] == "llm_api_error"
    assert failed.headers["x-should-retry"] == "false"
    kinds = [json.loads(e[6:])["message_type"] for e in streamed.text.split("\n\n")[:-2]]
    assert kinds == ["error_message", "stop_reason", "usage_statistics"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": "x", "role": "user", "content": "y"},
        {"role": "user"},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "approve": True}]},
        {"messages": [{"type": "approval"}]},
        {"messages": [{"type": "approval", "approve": True}, {"role": "user", "content": "x"}]},
        {"input": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]},
        {"input": [{"type": "image", "source": {**IMAGE, "data": "!"}}]},
        {"input": "x", "max_steps": 51},
        {"input": "x", "client_tools": [{"name": "t"}]},
    ],
)
async def test_a_message_that_says_nothing_clear_is_refused(body: dict[str, Any]) -> None:
    world = World()
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        response = await http.post(f"/v1/agents/{agent_id_of(world).key}/messages", json=body)
    require_error(response, 422, "invalid_field")
    assert len(world.told) == 1


async def test_a_follower_ends_typed_when_the_server_drains() -> None:
    def hang(w: World, agent: Any, run: Any) -> None:
        w.is_accepting = False
        w.quiet_waits = 100

    world = World(script=hang)
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        response = await http.post(
            f"/v1/agents/{agent_id_of(world).key}/messages", json={"input": "hi"}
        )
    require_error(response, 503, "following_ended")
    assert response.headers["x-should-retry"] == "false"
    assert not world.hub.watches


async def test_a_caller_who_leaves_ends_the_following_and_not_the_run() -> None:
    def hang(w: World, agent: Any, run: Any) -> None:
        w.emit(agent, "step.started", {"run_id": run.run_id})

    world = World(script=hang)
    async with world.client() as http:
        await http.post("/v1/agents", json={})
    agent = agent_id_of(world)
    events = iter(
        [
            {"type": "http.request", "body": b'{"input": "hi"}'},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(events)

    async def send(event: Any) -> None:
        raise AssertionError(f"nobody listens to {event}")

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": f"/v1/agents/{agent.key}/messages",
        "query_string": b"",
        "headers": [],
    }
    await world.app()(scope, receive, send)
    assert world.agents[agent].run is not None
    assert not world.hub.watches
    assert world.telemetry.counts[-1]["status"] == "499"


@pytest.mark.requirement("EFFECT-APPROVAL-BOUND")
async def test_answers_about_approvals_bind_to_the_effect_that_was_shown() -> None:
    world = World()
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        actor = agent_id_of(world)
        world.keep_effect(actor, make_record("effect-1"))
        listed = (await http.get("/v1/approvals?state=waiting")).json()
        assert [each["effect_id"] for each in listed["effects"]] == ["effect-1"]
        shown = (await http.get("/v1/approvals/effect-1")).json()
        assert shown["card"]["title"] == "Rewrite notes.txt"
        assert shown["actor"] == f"agent/{actor.key}"
        body = {"digest": shown["digest"], "reason": "fine"}
        yes = await http.post("/v1/approvals/effect-1/approve", json=body)
        assert yes.json()["state"] == "approved"
        again = await http.post("/v1/approvals/effect-1/deny", json={})
        require_error(again, 409, "already_decided")
        require_error(await http.post("/v1/approvals/effect-2/approve"), 404, "not_found")
        assert (await http.get("/v1/approvals")).json()["effects"] == []
        found = await http.get(f"/v1/effects?actor=agent/{actor.key}&state=approved,done")
        assert len(found.json()["effects"]) == 1
        require_error(await http.get("/v1/effects?actor=x"), 422, "invalid_field")
        require_error(await http.get("/v1/effects?state=odd"), 422, "invalid_field")
    assert world.told[-1][0].digest == shown["digest"]  # type: ignore[attr-defined]


async def test_events_are_read_by_cursor_and_the_future_is_refused() -> None:
    world = World()
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        actor = agent_id_of(world)
        await http.post(f"/v1/agents/{actor.key}/messages", json={"input": "hi"})
        page = (await http.get(f"/v1/events?actor=agent/{actor.key}&limit=2")).json()
        assert [event["sequence"] for event in page["events"]] == [1, 2]
        assert page["events"][0]["kind"] == "run.started"
        rest = (await http.get(f"/v1/events?after={page['next_after']}")).json()
        assert rest["events"][0]["position"] == 3
        ahead = await http.get("/v1/events?after=999999&follow=true")
        require_error(ahead, 400, "cursor_ahead")
        require_error(await http.get("/v1/events?after=-1"), 422, "invalid_field")
        require_error(await http.get(f"/v1/events?after={2**63}"), 422, "invalid_field")
        require_error(await http.get("/v1/events?limit=1001"), 422, "invalid_field")
        head = await http.head("/v1/events?follow=true")
        followed = await follow(world, http, rest["next_after"])
    assert followed == [f"id: {rest['next_after']}", "event: run.finished"]
    assert (head.status_code, head.content) == (200, b"")


async def follow(world: World, http: httpx.AsyncClient, last: int) -> list[str]:
    """Follow from before the last event until the server drains."""
    calls = 0

    def accepting() -> bool:
        nonlocal calls
        calls += 1
        return calls < 3

    world.accepting = accepting  # type: ignore[method-assign]
    world.quiet_waits = 100
    headers = {"accept": "text/event-stream", "last-event-id": str(last - 1)}
    response = await http.get("/v1/events", headers=headers)
    return response.text.split("\n")[:2]


async def test_a_held_store_refuses_what_would_wait_for_its_release() -> None:
    world = World()
    world.store.held = True
    async with world.client() as http:
        agent = (await http.post("/v1/agents", json={})).json()["id"]
        body = {"messages": [{"role": "user", "content": "hi"}]}
        sent = await http.post(f"/v1/agents/{agent}/messages", json=body)
        applied = await http.post("/v1/plans/plan-1/apply")
        for refused in (sent, applied):
            error = require_error(refused, 503, "store_held")
            assert "kelpie store release" in error["message"]
        later = await http.post(f"/v1/agents/{agent}/messages/async", json=body)
    assert later.status_code == 200, "it is kept, and nobody waits for it"


async def test_the_stores_care_is_for_the_unix_socket_alone() -> None:
    world = World()
    world.store.held = True
    app = world.app()

    async def local(scope: Scope, receive: Receive, send: Send) -> None:
        scope[LOCAL_SCOPE] = True
        await app(scope, receive, send)

    async with world.client(app) as http:
        require_error(await http.post("/v1/store/release"), 403, "local_only")
        backup = await http.post("/v1/store/backup", json={"target": "/x"})
        require_error(backup, 403, "local_only")
        require_error(await http.post("/v1/store/compact"), 403, "local_only")
        assert (await http.get("/v1/store/stats")).json()["held"] is True
        assert (await http.post("/v1/store/check")).json()["ok"] is True
        assert (await http.get("/v1/audit/verify")).json()["unproven"] == "the tail"
        assert (await http.get("/v1/audit")).json() == {"records": [], "next_after": None}
    assert world.store.held
    async with world.client(local) as http:
        assert (await http.post("/v1/store/release")).json() == {"held": False}
        assert (await http.post("/v1/store/backup", json={"target": "/x"})).status_code == 200
        compacted = await http.post("/v1/store/compact")
        assert compacted.json() == {
            "before_bytes": 8192,
            "after_bytes": 4096,
            "blobs_removed": 2,
            "blob_bytes_removed": 10,
        }
        relative = await http.post("/v1/store/backup", json={"target": "x"})
        require_error(relative, 422, "invalid_field")
    assert world.store.backups == ["/x"]


async def test_plans_are_made_shown_listed_and_applied() -> None:
    world = World()
    async with world.client() as http:
        made = (await http.post("/v1/plans", json={"workspace": "/w"})).json()
        assert made["workspace"] == "/w"
        assert (await http.get("/v1/plans")).json() == {"plans": [made]}
        path = f"/v1/plans/{made['plan_id']}"
        assert (await http.get(path)).json() == made
        assert (await http.post(f"{path}/apply")).json()["status"] == "waiting"
        require_error(await http.get("/v1/plans/none"), 404, "not_found")
        require_error(await http.post("/v1/plans", json={}), 422, "invalid_field")
        require_error(await http.post("/v1/plans", json={"yaml": "a: 1"}), 422, "invalid_field")


async def test_runs_are_cancelled_by_id_or_as_the_active_one() -> None:
    world = World(script=lambda w, agent, run: None)
    async with world.client() as http:
        await http.post("/v1/agents", json={})
        path = f"/v1/agents/{agent_id_of(world).key}/messages"
        run = (await http.post(f"{path}/async", json={"input": "hi"})).json()
        assert (await http.post(f"{path}/cancel")).json() == {run["id"]: "cancelled"}
        assert (await http.post(f"{path}/cancel", json={})).json() == {}


async def test_a_block_over_its_limit_changes_nothing() -> None:
    world = World()
    async with world.client() as http:
        block = {"label": "a/b", "value": "x", "limit": 3}
        await http.post("/v1/agents", json={"memory_blocks": [block]})
        path = f"/v1/agents/{agent_id_of(world).key}/core-memory/blocks/a%2Fb"
        refused = await http.patch(path, json={"value": "long"})
        require_error(refused, 422, "limit_exceeded")
        assert (await http.get(path)).json()["value"] == "x"
        assert (await http.get(path[:-1])).status_code == 404


def test_an_error_with_a_text_that_no_json_takes_is_answered_all_the_same() -> None:
    response = error_response(ConflictError("no \ud800", name="\ud800", size=1 << 80), safe=False)
    error = json.loads(response.body)["error"]
    assert response.status == 409
    assert error["message"] == "no \\ud800"
    assert error["fields"] == {"name": "\\ud800", "size": str(1 << 80)}


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_the_kind_of_an_event_forges_no_line_of_the_stream(end: str) -> None:
    event = encode_event({"n": 1}, kind=f"k{end}{end}id: 99{end}data: forged", cursor=3)
    lines = event.decode().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["id", "event", "data", ""]
    assert lines[0] == "id: 3"


def test_a_reader_of_large_events_gets_few_at_once_and_one_of_small_events_more_and_more() -> None:
    def page(count: int, size_bytes: int) -> list[StoredEvent]:
        actor = ActorId(TENANT_DEFAULT, "a", "b")
        return [StoredEvent(1, actor, 1, 0, "k", bytes(size_bytes))] * count

    assert count_ahead([]) == 4
    assert count_ahead(page(4, EVENT_BYTES_MAX - 1)) == 1
    assert count_ahead(page(16, 100)) == 32
    assert count_ahead(page(800, 100)) == EVENT_PAGE_ROWS_MAX
    assert count_ahead(page(500, 10_000)) == 104
