"""Runs and approvals from a connected program: typed, and bound to what was shown."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest

from kelpie import ApprovalInfo, Remote, RunInfo
from kelpie.app.wire import ServerWire
from kelpie.core.errors import (
    AlreadyDecidedError,
    ConflictError,
    DeadlineError,
    NotFoundError,
)
from tests.integration.server.test_whole_path import opened

BASE = "http://127.0.0.1:8283"
RUN_S = 60.0  # a run over a scripted model, on a busy machine


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A directory with one file."""
    directory = tmp_path / "workspace"
    directory.mkdir()
    (directory / "a.txt").write_text("one\n")
    return directory


async def make_agent(http: httpx.AsyncClient, workspace: Path) -> str:
    answer = await http.post("/v1/agents", json={"name": "ada", "workspace": str(workspace)})
    return str(answer.json()["id"])


async def ask_to_rewrite(
    http: httpx.AsyncClient, workspace: Path
) -> tuple[Remote, RunInfo, ApprovalInfo]:
    """An agent that waits for a yes, seen by a connected program."""
    agent_id = await make_agent(http, workspace)
    remote = Remote(ServerWire(http, BASE))
    run = await remote.runs.start(agent_id, "please rewrite it", idempotency_key="r")
    assert (await remote.runs.start(agent_id, "please rewrite it", idempotency_key="r")) == run
    stopped = await remote.runs.wait(run.id, timeout_s=RUN_S)
    assert (stopped.is_over, stopped.needs_approval) == (False, True)
    (question,) = await remote.approvals.find()
    return remote, stopped, question


async def test_a_run_is_started_waited_for_and_shown(tmp_path: Path, workspace: Path) -> None:
    async with opened(tmp_path) as http:
        agent_id = await make_agent(http, workspace)
        remote = Remote(ServerWire(http, BASE))
        run = await remote.runs.start(agent_id, "hello")
        assert (run.agent_id, run.is_over) == (agent_id, False)
        ended = await remote.runs.wait(run.id, timeout_s=RUN_S)
        assert (ended.status, ended.is_over, ended.needs_approval) == ("completed", True, False)
        assert await remote.runs.show(run.id) == ended
        with pytest.raises(NotFoundError):
            await remote.runs.show("run-00000000-0000-4000-8000-000000000000")
        with pytest.raises(NotFoundError):
            await remote.runs.start("agent-00000000-0000-4000-8000-000000000000", "hello")


@pytest.mark.requirement("REMOTE-APPROVAL-BOUND")
async def test_a_yes_counts_for_what_was_shown_and_once(tmp_path: Path, workspace: Path) -> None:
    async with opened(tmp_path) as http:
        remote, run, question = await ask_to_rewrite(http, workspace)
        assert question.card is not None
        shown = question.card_text()
        assert "| +two" in shown
        assert question.effect_id in shown
        for other in ("sha256:" + "0" * 64, ""):
            changed = msgspec.structs.replace(question, digest=other)
            with pytest.raises(ConflictError):
                await remote.approvals.approve(changed)
        assert (workspace / "a.txt").read_text() == "one\n"
        answered = await remote.approvals.approve(question, reason="looks right")
        assert answered.effect_id == question.effect_id
        ended = await remote.runs.wait(run.id, timeout_s=RUN_S)
        assert ended.status == "completed"
        assert (workspace / "a.txt").read_text() == "two\n"
        with pytest.raises(AlreadyDecidedError):
            await remote.approvals.approve(question)
        assert (await remote.approvals.show(question.effect_id)).state == "done"
        assert await remote.approvals.find() == []


async def test_a_no_is_final_and_a_run_that_waits_can_be_cancelled(
    tmp_path: Path, workspace: Path
) -> None:
    async with opened(tmp_path) as http:
        remote, run, question = await ask_to_rewrite(http, workspace)
        async with asyncio.TaskGroup() as group:
            cancelled = group.create_task(remote.runs.cancel(run))
        assert cancelled.result().status == "cancelled"
        with pytest.raises(AlreadyDecidedError):
            await remote.approvals.deny(question, reason="too late")
        assert (workspace / "a.txt").read_text() == "one\n"


async def test_a_wait_for_a_run_ends_at_its_deadline() -> None:
    going_on = {
        "id": "run-1",
        "agent_id": "agent-1",
        "status": "running",
        "stop_reason": None,
        "created_at": "2026-01-01T00:00:00Z",
        "completed_at": None,
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=going_on))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        with pytest.raises(DeadlineError, match="goes on"):
            await Remote(ServerWire(http, BASE)).runs.wait("run-1", timeout_s=0)
