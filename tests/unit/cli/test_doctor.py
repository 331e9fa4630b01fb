"""The doctor finds what is wrong, and its canary finds a gate that does not hold."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kelpie.app.care import ModelProbe
from kelpie.cli.checks import check_sandbox
from kelpie.core.errors import StoreError, UnavailableError
from kelpie.sandbox.protocol import TierReport
from kelpie.settings import Settings, load_settings
from tests.unit.cli.answers import PLAN, Question, event, log
from tests.unit.cli.product import Answer, Desk, Request
from tests.unit.cli.test_care import Holding

ACTOR = "plan/plan-1"
WAITING = event(1, "plan.waiting", ACTOR, effect_id="effect-1")
FINISHED = event(2, "plan.finished", ACTOR)


@pytest.fixture
def healthy(desk: Desk) -> Desk:
    """A product whose gate holds, on a free port."""
    question = Question(desk)
    desk.product.routes["POST", "/v1/plans"] = PLAN
    desk.product.routes["POST", "/v1/plans/plan-1/apply"] = PLAN

    def events(request: Request) -> Answer:
        source = log(*((WAITING, FINISHED) if question.answers else (WAITING,)))
        assert callable(source)
        return source(request)

    desk.product.routes["GET", "/v1/events"] = events
    desk.environment |= {"KELPIE_SERVER_PORT": str(_free_port()), "OPENAI_API_KEY": "k"}
    return desk


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _checks(desk: Desk) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in desk.type("doctor", "--json").json()}


def test_a_healthy_host_passes_every_check(healthy: Desk) -> None:
    outcome = healthy.type("doctor", "--json")
    statuses = {check["name"]: check["status"] for check in outcome.json()}
    assert outcome.status == 0, outcome.stdout
    assert statuses.pop("disk") in {"ok", "warn"}
    assert set(statuses.values()) == {"ok"}
    assert set(statuses) == {
        *("python", "settings", "sqlite", "store", "port"),
        *("sandbox bubblewrap", "model", "gate"),
    }
    assert healthy.product.drives == [True]


def test_a_database_is_asked_whether_it_answers(healthy: Desk) -> None:
    healthy.environment["KELPIE_STORE"] = "postgresql://ada:hunter2@host/kelpie"
    found = _checks(healthy)["store"]
    assert found["status"] == "ok"
    assert found["detail"] == "postgresql://ada:***@host/kelpie, PostgreSQL 15, for local"
    healthy.database_error = StoreError("nobody answers")
    found = _checks(healthy)["store"]
    assert (found["status"], found["detail"]) == ("fail", "nobody answers")


def test_a_database_is_restored_with_its_own_tools(healthy: Desk) -> None:
    healthy.environment["KELPIE_STORE"] = "postgresql://ada:hunter2@host/kelpie"
    for words in (("restore", "backup"), ("store", "accept-loss")):
        refused = healthy.type(*words, "--json")
        assert refused.status != 0
        assert "pg_restore" in refused.stderr
        assert "hunter2" not in refused.stderr


def test_people_get_a_line_per_check(healthy: Desk) -> None:
    lines = healthy.type("doctor").stdout.splitlines()
    assert lines[0].startswith("ok    python")
    assert lines[-1].split(maxsplit=2)[:2] == ["ok", "gate"]


def test_the_canary_flies_in_a_store_of_its_own_and_leaves_nothing(healthy: Desk) -> None:
    healthy.environment["KELPIE_URL"] = "http://127.0.0.1:9"
    assert _checks(healthy)["gate"]["status"] == "ok"
    asked = next(request for request in healthy.product.requests if request.path == "/v1/plans")
    root = Path(asked.body["root"])
    assert not root.is_relative_to(healthy.directory)
    assert not root.exists()


def _check_gate(desk: Desk) -> dict[str, Any]:
    outcome = desk.type("doctor", "--json")
    assert outcome.status == 1
    return next(check for check in outcome.json() if check["name"] == "gate")


def test_a_gate_that_lets_a_red_effect_through_fails(healthy: Desk) -> None:
    started = event(1, "unit.started", ACTOR, action="update", path="canary.txt")
    healthy.product.routes["GET", "/v1/events"] = log(started)
    gate = _check_gate(healthy)
    assert gate["detail"] == "a red effect did not wait: unit.started"
    assert gate["next_step"] == "do not run agents on this host"


def test_a_gate_that_writes_while_it_asks_fails(healthy: Desk) -> None:
    def apply(request: Request) -> Answer:
        asked = next(seen for seen in healthy.product.requests if seen.path == "/v1/plans")
        (Path(asked.body["root"]) / "canary.txt").write_text("gone")
        return PLAN

    healthy.product.routes["POST", "/v1/plans/plan-1/apply"] = apply
    assert _check_gate(healthy)["detail"] == "a red effect changed a file while it waited"


def test_a_gate_that_starts_a_denied_effect_fails(healthy: Desk) -> None:
    started = event(2, "unit.started", ACTOR, action="update", path="canary.txt")
    source = log(WAITING, started)
    healthy.product.routes["GET", "/v1/events"] = source
    assert _check_gate(healthy)["detail"] == "a denied effect was started"


def test_a_gate_that_cannot_be_tried_fails(healthy: Desk) -> None:
    del healthy.product.routes["POST", "/v1/plans"]
    assert _check_gate(healthy)["detail"].startswith("cannot be tried: no route")


def test_a_missing_sandbox_fails_and_a_better_one_only_warns(healthy: Desk) -> None:
    healthy.tiers = [
        TierReport("bubblewrap", works=False, detail="apt install bubblewrap"),
        TierReport("firecracker", works=False, detail="no KVM"),
    ]
    found = _checks(healthy)
    assert found["sandbox bubblewrap"]["status"] == "fail"
    assert found["sandbox bubblewrap"]["detail"] == "apt install bubblewrap"
    assert found["sandbox firecracker"]["status"] == "warn"


def test_the_model_is_asked_only_when_there_is_one(healthy: Desk) -> None:
    assert _checks(healthy)["model"]["status"] == "ok"
    healthy.model = ModelProbe(3, is_listed=False)
    assert _checks(healthy)["model"]["status"] == "warn"
    healthy.model = None
    assert _checks(healthy)["model"]["status"] == "fail"
    del healthy.environment["OPENAI_API_KEY"]
    assert _checks(healthy)["model"]["status"] == "warn"


def test_a_taken_port_fails_unless_our_server_has_it(healthy: Desk) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        healthy.environment["KELPIE_SERVER_PORT"] = str(listener.getsockname()[1])
        assert _checks(healthy)["port"]["status"] == "fail"
        healthy.holder = Holding(pid=os.getpid(), address="/nowhere.sock")
        found = {check["name"]: check for check in _without_gate(healthy)}
        assert found["port"]["status"] == "ok"
        assert f"held by process {os.getpid()}" in found["store"]["detail"]


def test_a_port_that_somebody_else_has_is_not_our_servers(healthy: Desk) -> None:
    stranger = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); "
    stranger += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", stranger], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        healthy.environment["KELPIE_SERVER_PORT"] = process.stdout.readline().strip()
        healthy.holder = Holding(pid=os.getpid(), address="/nowhere.sock")
        found = {check["name"]: check for check in _without_gate(healthy)}
        process.communicate("")
    assert found["port"]["status"] == "warn"
    assert "another process than the one that holds the store" in found["port"]["detail"]


def test_a_holder_that_is_stopped_is_said_to_be(healthy: Desk) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        healthy.holder = Holding(pid=process.pid, address="/nowhere.sock")
        found = {check["name"]: check for check in _without_gate(healthy)}
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n")
    assert found["store"]["status"] == "warn"
    assert found["store"]["next_step"] == f"kill -CONT {process.pid}"


def _without_gate(desk: Desk) -> list[dict[str, Any]]:
    return [check for check in desk.type("doctor", "--json").json() if check["name"] != "gate"]


def test_settings_that_would_stop_a_server_fail(healthy: Desk) -> None:
    healthy.environment["KELPIE_SERVER_HOST"] = "0.0.0.0"
    assert _checks(healthy)["settings"]["status"] == "fail"
    healthy.environment |= {"KELPIE_SERVER_HOST": "127.0.0.1", "KELPIE_NONSENSE": "1"}
    assert _checks(healthy)["settings"]["status"] == "warn"


def test_a_place_that_cannot_be_written_fails_with_its_name(healthy: Desk) -> None:
    (healthy.directory / "file").write_text("")
    healthy.environment["KELPIE_DATA_DIR"] = str(healthy.directory / "file" / "data")
    found = _checks(healthy)
    assert found["sqlite"]["status"] == found["disk"]["status"] == "fail"
    assert "file/data writable" in found["disk"]["next_step"]


def test_a_sandbox_that_is_missing_altogether_fails(healthy: Desk) -> None:
    async def probe(settings: Settings) -> list[TierReport]:
        raise UnavailableError("apt install bubblewrap")

    world = dataclasses.replace(healthy.world(), probe_sandboxes=probe)
    checks = asyncio.run(
        check_sandbox(
            world, load_settings(environment={}, cwd=healthy.directory, home=healthy.directory)
        )
    )
    assert [(check.name, check.status) for check in checks] == [("sandbox", "fail")]
