"""One store with everything around it: its directories, its model, its servers, its commands."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.e2e.support.processes import Process
from tests.measuring import measuring
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[3]
SCRIPTED_MODEL = ROOT / "demo" / "scripted_model.py"
COMMAND_S = 60.0
START_S = 30.0
START_ATTEMPTS = 3

Json = Any


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Json:
        """What it printed to stdout, as the one JSON value it must be."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that it printed to stderr with ``--json``."""
        error: dict[str, Any] = json.loads(self.err.splitlines()[-1])["error"]
        return error


def has_begun(process: Process) -> bool:
    """Whether a server has said that it answers, or has ended."""
    return bool(process.out) or process.status is not None


class Server:
    """A `kelpie serve` that answers."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @contextlib.contextmanager
    def client(self, **options: Any) -> Iterator[httpx.Client]:
        """An HTTP client of this server."""
        with httpx.Client(
            base_url=self.url, timeout=COMMAND_S, trust_env=False, **options
        ) as client:
            yield client

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Makes one request."""
        with self.client() as client:
            return client.request(method, path, **options)

    def get(self, path: str, **parameters: Any) -> Json:
        """The JSON answer of a GET that must succeed."""
        response = self.ask("GET", path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """The JSON answer of a POST that must succeed."""
        response = self.ask("POST", path, json=dict(body or {}))
        assert response.status_code == 200, response.text
        return response.json()

    def stats(self) -> dict[str, Any]:
        """What the store holds."""
        stats: dict[str, Any] = self.get("/v1/store/stats")
        return stats


NOBODY = "http://127.0.0.1:1/v1"  # a provider that is configured and does not answer


class Node:
    """A data directory, a workspace, a home, and the processes that use them.

    Everything that was started through it has ended once it is closed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.workspace = directory / "workspace"
        self.home = directory / "home"
        self.workspace.mkdir()
        self.home.mkdir()
        # A jail runs as another user, who has to reach the workspace.
        for place in (directory, *directory.parents[:2]):
            place.chmod(place.stat().st_mode | 0o011)
        self.workspace.chmod(0o777)
        self._model_url = NOBODY
        self._processes: list[Process] = []

    @property
    def socket(self) -> Path:
        """The Unix socket of whoever holds the store."""
        holder = (self.data / "kelpie.db.holder").read_text(encoding="utf-8")
        return Path(json.loads(holder)["address"])

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of this node's processes; nothing of the test's own leaks into it."""
        found = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT / "src"),
            **measuring(),
            "LANG": "C.UTF-8",
            "KELPIE_DATA_DIR": str(self.data),
            "KELPIE_WORKSPACES_ROOTS": str(self.directory),
            "OPENAI_API_KEY": "test",
            "OPENAI_BASE_URL": self._model_url,
        }
        return found | more

    def script(self, *steps: Mapping[str, Any], **fields: Any) -> None:
        """Starts a scripted model that this node's processes use from now on."""
        number = len(self._processes)
        path = self.directory / f"script-{number}.json"
        path.write_text(json.dumps({"steps": steps, **fields}), encoding="utf-8")
        model = self.run([sys.executable, str(SCRIPTED_MODEL), str(path), "--port", "0"])
        self._model_url = json.loads(model.await_out("}"))["url"]

    def run(self, argv: Sequence[str], **environment: str) -> Process:
        """Starts a program; it ends with this node."""
        output = self.directory / f"process-{len(self._processes)}"
        process = Process(
            argv, environment=self.environment(**environment), cwd=self.directory, output=output
        )
        self._processes.append(process)
        return process

    def kelpie(self, *words: str, **environment: str) -> Process:
        """Starts a command and does not wait for it."""
        return self.run([sys.executable, "-m", "kelpie.cli", *words], **environment)

    def cli(self, *words: str, text: str = "", **environment: str) -> Done:
        """Runs a command to its end; `text` is its stdin."""
        done = subprocess.run(
            [sys.executable, "-m", "kelpie.cli", *words],
            input=text,
            env=self.environment(**environment),
            cwd=self.directory,
            capture_output=True,
            encoding="utf-8",
            timeout=COMMAND_S,
            check=False,
        )
        return Done(status=done.returncode, out=done.stdout, err=done.stderr)

    def ok(self, *words: str, **environment: str) -> Json:
        """The JSON that a command prints, which must succeed."""
        done = self.cli(*words, "--json", **environment)
        assert done.status == 0, f"{words}: {done.status} {done.err}"
        return done.json

    def serve(self, *words: str, **environment: str) -> Server:
        """Starts a server and returns it once it answers."""
        for _ in range(START_ATTEMPTS):
            port = free_port()
            process = self.kelpie("serve", "--port", str(port), "--json", *words, **environment)
            eventually(partial(has_begun, process), within_s=START_S, what="the server to answer")
            if process.out:
                return Server(process, port)
            # Between choosing the port and taking it, another process may have come.
            assert "cannot listen" in process.err, process.err
        raise AssertionError("no port stayed free")

    def close(self) -> None:
        """Ends every process that is still there."""
        for process in reversed(self._processes):
            process.kill()
