"""`python -m demo` as a process, with scenes of its own; nothing of it may be left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.demo.scenes import harbour_scene
from tests.waiting import eventually

ROOT = Path(__file__).parents[3]
DEMO = [sys.executable, "-m", "demo"]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Where the demonstration puts its temporary directory."""
    path = tmp_path / "room"
    path.mkdir()
    return path


def environment(room: Path, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(room), **more}


def write_scene(tmp_path: Path, scene: dict[str, Any]) -> str:
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(scene))
    return str(path)


def run_demo(room: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=ROOT,
        env=environment(room, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def find_strays(room: Path) -> list[str]:
    """Processes of this machine that still work in the room."""
    strays: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").readlink().is_relative_to(room):
                strays.append((entry / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return strays


@pytest.mark.timeout(120)
@pytest.mark.covers(
    "kelpie serve",
    "kelpie plan",
    "kelpie apply",
    "kelpie approvals list",
    "kelpie approvals show",
    "kelpie approvals approve",
    "kelpie events tail",
    "kelpie audit verify",
    "POST /v1/agents",
    "GET /v1/agents",
    "POST /v1/agents/{agent_id}/messages",
    "GET /v1/agents/{agent_id}/messages",
    "GET /v1/approvals",
    "GET /v1/approvals/{effect_id}",
    "POST /v1/approvals/{effect_id}/approve",
    "GET /v1/effects",
    "GET /v1/effects/{effect_id}",
    "GET /v1/events",
    "GET /v1/audit",
    "GET /v1/audit/verify",
    "GET /v1/health",
    "POST /v1/plans",
    "GET /v1/plans/{plan_id}",
    "POST /v1/plans/{plan_id}/apply",
)
def test_another_scene_with_another_script_keeps_every_claim(tmp_path: Path, room: Path) -> None:
    scene = write_scene(tmp_path, harbour_scene())
    done = run_demo(room, "--scene", scene, "--json")
    assert done.returncode == 0, done.stderr
    assert "SCRIPTED MODEL: no AI behind this demo" in done.stderr
    told = json.loads(done.stdout)
    assert (told["ok"], told["failed"], told["model"]) == (True, None, "scripted")
    claims = "\n".join(claim["text"] for claim in told["claims"])
    for promise in (
        "after the restart the same card waits",
        "its outcome is unknown",
        "attempt 2 is done",
        "a second kelpie plan is empty",
        "books/harbour.toml was written once",
        "the unknown command was started once",
        "the workspace holds what the approved cards promised",
    ):
        assert promise in claims
    assert told["seconds"] < 60
    assert list(room.iterdir()) == []
    assert find_strays(room) == []


def test_a_claim_that_does_not_hold_says_what_was_expected_and_seen(
    tmp_path: Path, room: Path
) -> None:
    scene = harbour_scene()
    scene["rewrite"]["content"] = "what the model was never told to write\n"
    done = run_demo(room, "--scene", write_scene(tmp_path, scene))
    assert done.returncode == 1, done.stdout
    end = done.stdout[done.stdout.index("A claim does not hold") :]
    assert "the card promises exactly the content that was asked for" in end
    assert "expected: [('books/harbour.toml', 'update', 'sha256:" in end
    assert "seen:     [('books/harbour.toml', 'update', 'sha256:" in end
    assert "claims hold" not in done.stdout
    assert list(room.iterdir()) == []
    assert find_strays(room) == []


def test_a_scene_with_a_mistake_does_not_begin(tmp_path: Path, room: Path) -> None:
    scene = harbour_scene()
    del scene["once"]["argv"]
    done = run_demo(room, "--scene", write_scene(tmp_path, scene))
    assert (done.returncode, done.stdout) == (2, "")
    assert "argv" in done.stderr
    assert list(room.iterdir()) == []


@contextmanager
def other_model(text: str) -> Iterator[str]:
    """A model elsewhere, which always says the same; yields its address."""
    argv = [sys.executable, str(ROOT / "demo" / "scripted_model.py"), "--text", text]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def test_a_configured_model_is_used_and_named_and_its_failure_is_not_hidden(
    tmp_path: Path, room: Path
) -> None:
    scene = write_scene(tmp_path, harbour_scene())
    with other_model("I read nothing today.") as url:
        done = run_demo(
            room,
            *("--scene", scene),
            KELPIE_MODEL="openai/elsewhere",
            OPENAI_API_KEY="of-somebody",
            OPENAI_BASE_URL=url,
        )
    assert done.returncode == 1, done.stdout
    assert "MODEL: openai/elsewhere" in done.stdout
    assert "SCRIPTED" not in done.stdout
    assert "I read nothing today." in done.stdout.replace("\n", "")
    assert "A claim does not hold: " in done.stdout


def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path: Path, room: Path) -> None:
    scene = write_scene(tmp_path, harbour_scene())
    with subprocess.Popen(
        [*DEMO, "--scene", scene],
        cwd=ROOT,
        env=environment(room),
        stdout=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "the server answers" in line:
                break
        assert len(find_strays(room)) >= 2
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        assert demo.wait(20) == 130
    assert list(room.iterdir()) == []
    eventually(lambda: not find_strays(room), within_s=5, what="every process has ended")
