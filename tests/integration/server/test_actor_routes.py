"""User-defined actors over HTTP: calls, keys, deadlines, back-pressure, care, typed references."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest

from kelpie import Actor, Remote, State, command, connect, query, ref
from kelpie.app.opened import App, open_app
from kelpie.app.wire import ServerWire
from kelpie.core import limits
from kelpie.core.errors import (
    ActorFailedError,
    ConflictError,
    DeadlineError,
    InvalidFieldError,
    KelpieError,
    KeyReusedError,
    ModelError,
    NotFoundError,
    UnavailableError,
)
from kelpie.server.auth import LOCAL_SCOPE
from kelpie.settings import load_settings
from tests.waiting import eventually_async

BASE = "http://127.0.0.1:8283"


class Ledger(State):
    """A sum, and what was noted."""

    total: int = 0
    notes: list[str] = msgspec.field(default_factory=list)


class Counter(Actor[Ledger]):
    """One counter."""

    @command
    def add(self, amount: int, *, note: str = "") -> int:
        """Add, and return the sum."""
        self.state.total += amount
        if note:
            self.state.notes.append(note)
        return self.state.total

    @query
    def notes(self) -> tuple[str, ...]:
        """Return what was noted."""
        return tuple(self.state.notes)

    @command
    async def linger(self) -> None:
        """Keep the actor until it is killed."""
        await asyncio.Event().wait()

    @command
    def refuse(self) -> None:
        """Refuse on purpose."""
        raise ConflictError("not today", day="monday")

    @command
    def fail(self) -> None:
        """Fail by mistake."""
        raise ZeroDivisionError

    @command
    def send_fail(self, other: str) -> None:
        """Let another counter fail."""
        self.ctx.send(ref(Counter, other).refuse)


class Other(Actor[Ledger]):
    """Another type, later in the list."""

    @command
    def touch(self) -> None:
        """Exist."""
        self.state.total += 1


class Agentlike(Actor[Ledger]):
    """A class with a built-in type's name."""

    actor_type = "agent"

    @command
    def touch(self) -> None:
        """Never run."""


@asynccontextmanager
async def opened(
    tmp_path: Path, *kinds: type[Actor[Any]], drive: bool = False
) -> AsyncIterator[App]:
    environment = {
        "KELPIE_DATA_DIR": str(tmp_path / "data"),
        "KELPIE_LOG": "error",
    }
    (tmp_path / "kelpie.toml").write_text(
        "model = 'vllm/none'\n[providers.vllm]\nwire = 'openai'\nbase_url = 'http://127.0.0.1:9'\n"
    )
    settings = load_settings(environment=environment, cwd=tmp_path, home=tmp_path)
    async with open_app(settings, drive=drive, actors=kinds or (Counter, Other)) as app:
        yield app


def client(app: App, *, local: bool = False) -> httpx.AsyncClient:
    async def owned(scope: Any, receive: Any, send: Any) -> None:
        await app.asgi({**scope, LOCAL_SCOPE: local}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=cast("Any", owned)), base_url=BASE)


async def runs(http: httpx.AsyncClient, handler: str) -> bool:
    """Whether the counter ``a`` runs this handler."""
    shown = await http.get("/v1/actors/Counter/a")
    return shown.status_code == 200 and shown.json()["handler"] == handler


async def has_letter(http: httpx.AsyncClient) -> bool:
    """Whether there is a dead letter."""
    return bool((await http.get("/v1/dead-letters")).json()["dead_letters"])


async def test_a_call_is_checked_by_its_methods_types_and_answers_with_a_result(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        added = await http.post("/v1/actors/Counter/a/add", json={"amount": 2, "note": "x"})
        assert (added.status_code, added.json()) == (200, {"result": 2})
        noted = await http.post("/v1/actors/Counter/a/notes")
        assert noted.json() == {"result": ["x"]}
        for body, field in (
            ({}, "body.amount"),
            ({"amount": "2"}, "body.amount"),
            ({"amount": 2, "nots": ""}, "body.nots"),
        ):
            wrong = await http.post("/v1/actors/Counter/a/add", json=body)
            assert wrong.status_code == 422
            assert wrong.json()["error"]["fields"]["field"] == field
        broken = await http.post("/v1/actors/Counter/a/add", content=b'{"amount":')
        assert broken.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/actors/Nobody/a/add",
        "/v1/actors/Counter/a/nothing",
        "/v1/actors/agent/a/agent.create",
        "/v1/actors/plan/a/show",
        "/v1/actors/target/a/show",
    ],
)
async def test_only_methods_of_user_defined_types_are_reachable(tmp_path: Path, path: str) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        answer = await http.post(path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_a_key_makes_a_call_happen_once_and_belongs_to_its_request(tmp_path: Path) -> None:
    path, headers = "/v1/actors/Counter/a/add", {"idempotency-key": "k"}
    async with opened(tmp_path) as app, client(app) as http:
        answers = await asyncio.gather(
            *(http.post(path, json={"amount": 5}, headers=headers) for _ in range(8))
        )
        assert {answer.json()["result"] for answer in answers} == {5}
        other = await http.post(path, json={"amount": 6}, headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    async with opened(tmp_path) as app, client(app) as http:
        again = await http.post(path, json={"amount": 5}, headers=headers)
        assert again.json() == {"result": 5}


async def test_a_deadline_is_the_callers_and_a_full_mailbox_says_when_to_retry(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as app, client(app, local=True) as http:
        await http.post("/v1/actor-admin/Counter/a/pause")
        path, body = "/v1/actors/Counter/a/add", {"amount": 1}
        late = await http.post(path, json=body, headers={"x-kelpie-timeout-ms": "20"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        for wrong in ("0", "-1", "soon", str(limits.INVOCATION_TIMEOUT_MS_MAX + 1)):
            refused = await http.post(path, json=body, headers={"x-kelpie-timeout-ms": wrong})
            field = refused.json()["error"]["fields"]["field"]
            assert (refused.status_code, field) == (422, "header.X-Kelpie-Timeout-Ms")
        headers = {"x-kelpie-timeout-ms": "2000"}
        many = limits.MAILBOX_DEPTH_MAX + 8
        async with asyncio.TaskGroup() as group:
            calls = [
                group.create_task(http.post(path, json=body, headers=headers)) for _ in range(many)
            ]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            await http.post("/v1/actor-admin/Counter/a/resume")
        answers = [call.result() for call in calls]
        full = [answer for answer in answers if answer.status_code == 429]
        assert full
        assert {answer.headers["retry-after"] for answer in full} == {"1"}
        assert {answer.json()["error"]["code"] for answer in full} == {"overloaded"}


async def test_care_is_for_the_owner_and_looking_is_for_everybody(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app) as http, client(app, local=True) as owner:
        await http.post("/v1/actors/Counter/a/add", json={"amount": 1})
        for verb in ("pause", "resume", "kill"):
            refused = await http.post(f"/v1/actor-admin/Counter/a/{verb}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "key_needed")
        assert (await http.post("/v1/dead-letters/1/replay")).status_code == 403
        paused = (await owner.post("/v1/actor-admin/Counter/a/pause")).json()
        assert (paused["paused"], paused["version"], paused["incarnation"]) == (True, 1, 1)
        shown = (await http.get("/v1/actors/Counter/a")).json()
        assert shown == paused
        assert not (await owner.post("/v1/actor-admin/Counter/a/resume")).json()["paused"]
        assert (await owner.post("/v1/actor-admin/Counter/a/kill")).json() == {"killed": True}
        assert (await owner.post("/v1/actor-admin/Counter/b/kill")).json() == {"killed": False}
        assert (await owner.post("/v1/actor-admin/agent/a/kill")).status_code == 404
        assert (await http.get("/v1/actors/Counter/b")).status_code == 404


async def test_a_killed_handler_fails_its_caller_and_nobody_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app, local=True) as http:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(http.post("/v1/actors/Counter/a/linger"))
            await eventually_async(
                lambda: runs(http, "linger"), within_s=10, what="the handler to run"
            )
            assert (await http.post("/v1/actor-admin/Counter/a/kill")).json()["killed"]
        assert waiting.result().status_code >= 500
        after = await http.post("/v1/actors/Counter/a/add", json={"amount": 1})
        assert after.json() == {"result": 1}


async def test_stored_actors_are_listed_by_cursor_and_built_in_ones_never(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        assert (await http.post("/v1/agents", json={"name": "ada"})).status_code == 200
        for key in "abc":
            await http.post(f"/v1/actors/Counter/{key}/add", json={"amount": 1})
        await http.post("/v1/actors/Other/a/touch")
        seen, after = [], None
        while True:
            asked = {"limit": 1, **({"after": after} if after else {})}
            page = (await http.get("/v1/actors", params=asked)).json()
            seen += [f"{row['type']}/{row['key']}" for row in page["actors"]]
            after = page["next_after"]
            if after is None:
                break
        assert seen == ["Counter/a", "Counter/b", "Counter/c", "Other/a"]
        one = (await http.get("/v1/actors", params={"type": "Other"})).json()
        assert [row["key"] for row in one["actors"]] == ["a"]
        assert (await http.get("/v1/actors", params={"type": "agent"})).status_code == 404
        crossed = {"type": "Other", "after": "Counter/a"}
        assert (await http.get("/v1/actors", params=crossed)).status_code == 422


async def test_the_types_are_described_with_their_schemas(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        counter, other = (await http.get("/v1/actor-types")).json()["types"]
    assert (counter["name"], other["name"], counter["doc"]) == ("Counter", "Other", "One counter.")
    assert "add" in [method["name"] for method in counter["methods"]]


@pytest.mark.parametrize("kinds", [(Agentlike,), (Counter, Counter)])
async def test_a_taken_type_name_is_refused_before_anything_is_served(
    tmp_path: Path, kinds: tuple[type[Actor[Any]], ...]
) -> None:
    with pytest.raises(InvalidFieldError, match="is the name of"):
        async with opened(tmp_path, *kinds):
            raise AssertionError("it was hosted")


async def test_references_over_http_are_the_same_as_in_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as app, client(app) as http:
        counter = Remote(ServerWire(http, BASE)).ref(Counter, "a")
        assert await counter.add(2, note="x") == 2
        assert await counter.notes() == ("x",)
        once = Remote(ServerWire(http, BASE)).ref(Counter, "a", idempotency_key="k")
        assert [await once.add(1), await once.add(1)] == [3, 3]
        with pytest.raises(KeyReusedError):
            await once.add(2)
        with pytest.raises(InvalidFieldError, match="amount"):
            await counter.add(cast("Any", "2"))
        with pytest.raises(ConflictError, match="not today") as refused:
            await counter.refuse()
        assert refused.value.fields == {"day": "monday"}
        with pytest.raises(ActorFailedError):
            await counter.fail()
        with pytest.raises(DeadlineError):
            await Remote(ServerWire(http, BASE)).ref(Counter, "b", timeout_s=0.02).linger()
        with pytest.raises(NotFoundError):
            await Remote(ServerWire(http, BASE)).ref(Agentlike, "a").touch()


async def test_errors_over_http_keep_their_class_or_at_least_their_code() -> None:
    described = {"code": "model_failed", "message": "m", "fields": {"reason": "auth"}}
    answers = iter(
        [
            httpx.Response(502, json={"error": described}),
            httpx.Response(418, json={"error": {**described, "code": "new", "retriable": True}}),
            httpx.Response(502, text="<html>"),
        ]
    )
    transport = httpx.MockTransport(lambda _: next(answers))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        counter = Remote(ServerWire(http, BASE)).ref(Counter, "a")
        with pytest.raises(ModelError) as known:
            await counter.fail()
        assert (known.value.reason, known.value.message) == ("auth", "m")
        with pytest.raises(KelpieError) as unknown:
            await counter.fail()
        assert (unknown.value.code, unknown.value.retriable) == ("new", True)
        with pytest.raises(KelpieError, match="HTTP status 502"):
            await counter.fail()


async def test_a_server_that_is_not_there_is_unavailable_and_a_bad_address_is_named() -> None:
    async with connect("http://127.0.0.1:9") as remote:
        with pytest.raises(UnavailableError, match="does not answer"):
            await remote.ref(Counter, "a").notes()
    with pytest.raises(InvalidFieldError, match="url"):
        async with connect("ftp://nowhere"):
            raise AssertionError("it was connected")


async def test_a_dead_letter_is_shown_with_its_traceback_and_replayed(tmp_path: Path) -> None:
    async with opened(tmp_path, drive=True) as app, client(app, local=True) as http:
        sent = await http.post("/v1/actors/Counter/a/send_fail", json={"other": "b"})
        assert sent.status_code == 200
        await eventually_async(
            lambda: has_letter(http), within_s=20, what="the message to be a dead letter"
        )
        (letter,) = (await http.get("/v1/dead-letters")).json()["dead_letters"]
        assert (letter["sender"], letter["receiver"]) == ("Counter/a", "Counter/b")
        assert "not today" in letter["error"]
        replayed = await http.post(f"/v1/dead-letters/{letter['id']}/replay")
        assert replayed.json() == {"id": letter["id"]}
        for unknown in (str(letter["id"]), "x", "9" * 30):
            assert (await http.post(f"/v1/dead-letters/{unknown}/replay")).status_code == 404
