"""The processes of the demonstration: a model, a server that gets killed, and the `kelpie` command.

Owns every process it starts and the directory they work in. Kills nothing else: always by the pid
of its own child.
"""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import httpx

from demo.claims import WIDTH, ClaimError
from demo.models import SCRIPTED_HANDLE, RealModel, clean_environment
from demo.scene import Scene

HERE: Final = Path(__file__).resolve().parent
SOURCES: Final = HERE.parent / "src"
POLL_S: Final = 0.02
START_TIMEOUT_S: Final = 20.0
COMMAND_TIMEOUT_S: Final = 60.0
SCRIPTED_PATIENCE_S: Final = 20.0
REAL_PATIENCE_S: Final = 180.0
PAGE_ROWS: Final = 1_000

T = TypeVar("T")


class Moment(NamedTuple):
    """Something that happened to the server, for the timeline."""

    at_ms: int
    text: str


class Done(NamedTuple):
    """A `kelpie` command that ended."""

    status: int
    stdout: str
    stderr: str

    def data(self) -> Any:
        """Return what it printed as one JSON value."""
        return json.loads(self.stdout)


class Stage:
    """A temporary world with a server in it."""

    def __init__(self, root: Path, scene: Scene, real: RealModel | None) -> None:
        self.root = root
        self.data_dir = root / "data"
        self.patience_s = REAL_PATIENCE_S if real else SCRIPTED_PATIENCE_S
        self.moments: list[Moment] = []
        self._scene = scene
        self._real = real
        self._port = _free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[Any]] = []
        self._environment = _environment(self)
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=COMMAND_TIMEOUT_S)

    @property
    def url(self) -> str:
        """Where the server listens, across all its lives."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def server_pid(self) -> int:
        """The pid of the server that runs now."""
        assert self._server is not None, "the server runs"
        return self._server.pid

    # --- processes ------------------------------------------------------------------------------

    def start_model(self) -> str:
        """Make a model reachable and say which one: a scripted process, or the configured one."""
        if self._real is not None:
            self._environment |= {"KELPIE_MODEL": self._real.handle} | self._real.variables
            return f"the model is {self._real.handle}"
        script = self.root / "script.json"
        script.write_text(json.dumps(self._scene.script))
        process = self.spawn([sys.executable, str(HERE / "scripted_model.py"), str(script)])
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ClaimError("the scripted model starts", "an address", "it ended at once")
        url = json.loads(line)["url"]
        self._environment |= {
            "KELPIE_MODEL": SCRIPTED_HANDLE,
            "OPENAI_API_KEY": "none-needed",
            "OPENAI_BASE_URL": url,
        }
        return f"the scripted model is process {process.pid} on {url}"

    def start_server(self) -> float:
        """Start `kelpie serve` and return after how many seconds it answered.

        Raises:
            ClaimError: It did not.
        """
        began_s = time.monotonic()
        with (self.root / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [*_kelpie(), "serve", "--port", str(self._port)],
                env=self._environment,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(self._server)
        self.moments.append(Moment(_now_ms(), f"kelpie serve starts, process {self.server_pid}"))
        self.wait(self._answers, "the server answers", within_s=START_TIMEOUT_S)
        return time.monotonic() - began_s

    def kill_server(self) -> int:
        """Kill the server with SIGKILL and return how it ended (-9)."""
        assert self._server is not None, "there is a server to kill"
        pid = self._server.pid
        self._server.kill()
        self.moments.append(Moment(_now_ms(), f"kill -9 {pid}"))
        status = self._server.wait()
        self._children.remove(self._server)
        self._server = None
        return status

    def spawn(self, argv: list[str]) -> subprocess.Popen[str]:
        """Start a process that is ended with the stage; its stdout is a pipe."""
        process = subprocess.Popen(
            argv,
            env=self._environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._children.append(process)
        return process

    def spawn_kelpie(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a `kelpie` command and do not wait for it."""
        return self.spawn([*_kelpie(), *arguments])

    def kelpie(self, *arguments: str) -> Done:
        """Run a `kelpie` command to its end."""
        done = subprocess.run(
            [*_kelpie(), *arguments],
            env=self._environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def kelpie_on_terminal(self, *arguments: str, colored: bool) -> Done:
        """Run a `kelpie` command on a terminal of its own, so that it prints as people see it."""
        terminal, end = pty.openpty()
        look = {"TERM": "xterm"} if colored else {"TERM": "dumb"}
        process = subprocess.Popen(
            [*_kelpie(), *arguments],
            env=self._environment | look,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)
        self._children.append(process)
        with os.fdopen(terminal, "rb", buffering=0) as screen:
            printed = _read_screen(screen)
        status = process.wait(COMMAND_TIMEOUT_S)
        self._children.remove(process)
        return Done(status, printed.decode(errors="replace").replace("\r\n", "\n"), "")

    def close(self) -> None:
        """End every process that was started and is still there."""
        self._http.close()
        for process in self._children:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if process is self._server else signal.SIGTERM)
        for process in self._children:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._children.clear()

    # --- looking --------------------------------------------------------------------------------

    def get(self, path: str, **parameters: str | int) -> Any:
        """Return what the server answers to a GET.

        Raises:
            ClaimError: It refuses or does not answer.
        """
        try:
            response = self._http.get(path, params=parameters)
        except httpx.HTTPError as error:
            raise ClaimError(f"GET {path} is answered", "an answer", repr(error)) from error
        if response.status_code != 200:
            raise ClaimError(f"GET {path} is answered", "status 200", response.text)
        return response.json()

    def follow(self, actor: str, deadline_s: float) -> httpx.Response:
        """Return the open stream of an actor's events, from the first on."""
        parameters: dict[str, str | int] = {"actor": actor, "after": 0, "follow": "true"}
        request = self._http.build_request(
            "GET", "/v1/events", params=parameters, timeout=deadline_s
        )
        return self._http.send(request, stream=True)

    def pages(self, path: str, key: str, **parameters: str | int) -> list[dict[str, Any]]:
        """Return every row of a list that comes in pages."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.get(path, **parameters, limit=PAGE_ROWS)
            rows += page[key]
            if not page[key] or page["next_after"] is None:
                return rows
            parameters["after"] = page["next_after"]

    def audit(self) -> list[dict[str, Any]]:
        """Return all audit records."""
        return self.pages("/v1/audit", "records")

    def effect(self, effect_id: str) -> dict[str, Any]:
        """Return one effect as it stands."""
        found: dict[str, Any] = self.get(f"/v1/effects/{effect_id}")
        return found

    def waiting(self, kind: str) -> dict[str, Any]:
        """Wait until an effect of this kind waits for a person, and return it."""

        def look() -> dict[str, Any] | None:
            rows = self.get("/v1/approvals")["effects"]
            return next((row for row in rows if row["kind"] == kind), None)

        return self.wait(look, f"a {kind} waits for a person")

    def reach(
        self, effect_id: str, *states: str, within_s: float | None = None, attempt: int = 0
    ) -> dict[str, Any]:
        """Wait until an effect is in one of the states, at that attempt or later; return it."""

        def look() -> dict[str, Any] | None:
            row = self.effect(effect_id)
            return row if row["state"] in states and row["attempt"] >= attempt else None

        return self.wait(look, f"the effect becomes {' or '.join(states)}", within_s=within_s)

    def wait(self, probe: Callable[[], T | None], what: str, *, within_s: float | None = None) -> T:
        """Return the first true answer of ``probe``.

        Raises:
            ClaimError: There is none in time, or the server ended.
        """
        patience_s = self.patience_s if within_s is None else within_s
        ends_s = time.monotonic() + patience_s
        while True:
            answer = probe()
            if answer:
                return answer
            if self._server is not None and self._server.poll() is not None:
                seen = f"the server ended with {self._server.returncode}\n{self.log_tail()}"
                raise ClaimError(what, "a server that runs", seen)
            if time.monotonic() > ends_s:
                seen = f"nothing of it in {patience_s:.0f} s\n{self.log_tail()}"
                raise ClaimError(what, f"within {patience_s:.0f} s", seen)
            time.sleep(POLL_S)

    def log_tail(self) -> str:
        """Return the last lines that the server logged."""
        path = self.root / "server.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(lines[-6:])

    def _answers(self) -> bool:
        try:
            return self._http.get("/v1/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def _environment(stage: Stage) -> dict[str, str]:
    """Return what every process gets: nobody's configuration, and this checkout's sources."""
    clean = clean_environment(os.environ)
    return clean | {
        "PYTHONPATH": os.pathsep.join([str(SOURCES), *filter(None, [clean.get("PYTHONPATH", "")])]),
        "KELPIE_DATA_DIR": str(stage.data_dir),
        "KELPIE_WORKSPACES_ROOTS": str(stage.root),
        "XDG_CONFIG_HOME": str(stage.root / "config"),
        "COLUMNS": str(WIDTH - 4),
        "PYTHONUNBUFFERED": "1",
    }


def _read_screen(screen: io.FileIO) -> bytes:
    """Return everything that is printed on a terminal until nobody holds its other end."""
    printed = b""
    while True:
        try:
            data = screen.read(65_536)
        except OSError:  # Linux says EIO when the last writer has gone
            return printed
        if not data:
            return printed
        printed += data


def _kelpie() -> list[str]:
    return [sys.executable, "-m", "kelpie.cli"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
