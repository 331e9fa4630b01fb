"""Bad input is refused by field and limit, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from kelpie.core.limits import BLOCK_CHARS_DEFAULT, NAME_CHARS_MAX, REQUEST_BODY_BYTES_MAX
from tests.e2e.support.node import Node, Server
from tests.e2e.support.scripts import BEFORE, FILE, call, conversation, on

UNKNOWN = "agent-00000000-0000-4000-8000-000000000000"
COUNTED = ("actors", "effects_open", "events", "outbox", "reminders", "dead_letters")
LABEL = "human"


@pytest.fixture(scope="module")
def server(shared: Node) -> Server:
    shared.script(
        on("unknown tool", tool_calls=[call("no_such_tool", path=FILE)]),
        on("wrong arguments", tool_calls=[call("read_file", path=7, colour="red")]),
        *conversation(),
    )
    return shared.serve()


@pytest.fixture
def agent_id(shared: Node, server: Server) -> str:
    """A fresh agent with a block and a file."""
    (shared.workspace / FILE).write_text(BEFORE, encoding="utf-8")
    blocks = [{"label": LABEL, "value": "Ada"}]
    body = {"name": "bad", "workspace": str(shared.workspace), "memory_blocks": blocks}
    return str(server.post("/v1/agents", body)["id"])


def counts(server: Server) -> dict[str, Any]:
    stats = server.stats()
    return {name: stats[name] for name in COUNTED}


@contextmanager
def unchanged(server: Server, agent_id: str) -> Iterator[None]:
    """Checks that what happens inside leaves the store and the agent as they were."""
    before = counts(server), server.get(f"/v1/agents/{agent_id}")
    yield
    assert (counts(server), server.get(f"/v1/agents/{agent_id}")) == before


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a refusal, which must have this status and code."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    return error


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        pytest.param(b'{"name": ', (400, "invalid_json", "body"), id="malformed JSON"),
        pytest.param(b'{"name": "\xff"}', (400, "invalid_json", "body"), id="invalid UTF-8"),
        pytest.param(b'{"name": 3}', (422, "invalid_field", "body.name"), id="wrong type"),
        pytest.param(b"[]", (422, "invalid_field", "body"), id="an array"),
        pytest.param(b'{"tools": ["no"]}', (422, "invalid_field", "body.tools"), id="unknown tool"),
        pytest.param(b'{"naem": "x"}', (422, "invalid_field", "body.naem"), id="unknown field"),
    ],
)
def test_a_body_that_is_wrong_names_its_field(
    server: Server, agent_id: str, content: bytes, refused: tuple[int, str, str]
) -> None:
    status, code, field = refused
    with unchanged(server, agent_id):
        response = server.ask("POST", "/v1/agents", content=content)
        error = refusal(response, status, code)
    assert error["fields"]["field"].startswith(field), error
    assert error["retriable"] is False


def test_an_over_long_name_names_the_limit(server: Server, agent_id: str) -> None:
    with unchanged(server, agent_id):
        response = server.ask("POST", "/v1/agents", json={"name": "n" * (NAME_CHARS_MAX + 1)})
        error = refusal(response, 422, "invalid_field")
    assert error["fields"]["field"] == "body.name"
    assert str(NAME_CHARS_MAX) in error["message"]


def test_a_body_of_fifty_megabytes_is_refused_with_the_limit(server: Server, agent_id: str) -> None:
    content = json.dumps({"input": "x" * (50 * 1024 * 1024)}).encode()
    with unchanged(server, agent_id):
        response = server.ask("POST", f"/v1/agents/{agent_id}/messages", content=content)
        error = refusal(response, 413, "body_too_large")
    assert error["fields"] == {"field": "body", "limit": REQUEST_BODY_BYTES_MAX, "unit": "bytes"}


def test_a_body_that_lies_about_its_size_is_refused_with_the_limit(
    server: Server, agent_id: str
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(1024 * 1024)

    with unchanged(server, agent_id):
        response = server.ask("POST", f"/v1/agents/{agent_id}/messages", content=chunks())
        refusal(response, 413, "body_too_large")


def test_a_block_over_its_limit_names_the_limit(server: Server, agent_id: str) -> None:
    path = f"/v1/agents/{agent_id}/core-memory/blocks/{LABEL}"
    with unchanged(server, agent_id):
        response = server.ask("PATCH", path, json={"value": "x" * (BLOCK_CHARS_DEFAULT + 1)})
        error = refusal(response, 422, "limit_exceeded")
    assert error["fields"]["limit"] == BLOCK_CHARS_DEFAULT
    assert LABEL in error["message"]


def test_an_agent_that_does_not_exist_is_named(server: Server, agent_id: str) -> None:
    with unchanged(server, agent_id):
        response = server.ask("POST", f"/v1/agents/{UNKNOWN}/messages", json={"input": "hello"})
        error = refusal(response, 404, "not_found")
    assert error["fields"] == {"kind": "agent", "name": UNKNOWN}


def test_an_id_that_is_none_names_the_part_of_the_path(server: Server, agent_id: str) -> None:
    with unchanged(server, agent_id):
        error = refusal(server.ask("GET", "/v1/agents/bob"), 422, "invalid_field")
    assert error["fields"]["field"] == "path.agent_id"


@pytest.mark.parametrize("scope", ["everybody", "one"])
def test_a_cursor_from_the_future_is_refused(server: Server, agent_id: str, scope: str) -> None:
    actor = {"actor": f"agent/{agent_id}"} if scope == "one" else {}
    with unchanged(server, agent_id):
        response = server.ask("GET", "/v1/events", params={"after": 10**12, **actor})
        error = refusal(response, 400, "cursor_ahead")
    assert str(10**12) in error["message"].replace(",", "")


@pytest.mark.parametrize("after", ["-1", "x", str(2**63)])
def test_a_cursor_that_is_no_position_names_its_parameter(
    server: Server, agent_id: str, after: str
) -> None:
    with unchanged(server, agent_id):
        response = server.ask("GET", "/v1/events", params={"after": after})
        assert response.status_code == 422, response.text
    assert response.json()["error"]["fields"]["field"] == "query.after"


@pytest.mark.parametrize(
    ("text", "said"),
    [("unknown tool", "no_such_tool"), ("wrong arguments", "path")],
)
def test_a_model_that_calls_wrongly_is_told_so_and_the_run_ends(
    server: Server, agent_id: str, text: str, said: str
) -> None:
    answer = server.post(f"/v1/agents/{agent_id}/messages", {"input": text})
    (returned,) = [m for m in answer["messages"] if m["message_type"] == "tool_return_message"]
    assert returned["status"] == "error"
    assert said in returned["tool_return"]
    assert answer["stop_reason"]["stop_reason"] == "end_turn"


def test_an_approval_decided_twice_is_a_conflict(
    shared: Node, server: Server, agent_id: str
) -> None:
    server.post(f"/v1/agents/{agent_id}/messages", {"input": "write"})
    (waiting,) = server.get("/v1/approvals")["effects"]
    path = f"/v1/approvals/{waiting['effect_id']}"
    assert server.post(f"{path}/deny")["state"] == "denied"
    with unchanged_file(shared):
        error = refusal(server.ask("POST", f"{path}/approve", json={}), 409, "already_decided")
        assert error["fields"]["effect_id"] == waiting["effect_id"]
        assert server.get(path)["state"] == "denied"


def test_an_approval_of_something_else_is_refused(
    shared: Node, server: Server, agent_id: str
) -> None:
    server.post(f"/v1/agents/{agent_id}/messages", {"input": "write"})
    (waiting,) = server.get("/v1/approvals")["effects"]
    path = f"/v1/approvals/{waiting['effect_id']}"
    with unchanged_file(shared):
        response = server.ask("POST", f"{path}/approve", json={"digest": "sha256:0"})
        assert response.status_code == 409, response.text
        assert server.get(path)["state"] == "waiting"
    assert server.post(f"{path}/deny")["state"] == "denied"


@contextmanager
def unchanged_file(shared: Node) -> Iterator[None]:
    yield
    assert (shared.workspace / FILE).read_text() == BEFORE
