"""Each promise is checked as root and as an ordinary user, when the suite itself runs as root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.system import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator

USER_ID = 65_533  # no account has it, so that its process count is this suite's alone
IDENTITIES = ("root", "user") if os.geteuid() == 0 else ("user",)
DRIVER = Path(__file__).with_name("driver.py")
PACKAGES = Path(__file__).parents[3] / "src"
TIMEOUT_S = 50.0


def readable_interpreter(site: Path, user_id: int) -> str:
    """Returns a Python that ``user_id`` may start; a private one in root's home is not."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        command = [candidate, "-c", "import kelpie.core.digests"]
        try:
            subprocess.run(
                command, env={"PYTHONPATH": str(site)}, check=True, cwd="/", **as_user(user_id)
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.fail(f"uid {user_id} can start no Python {sys.version_info[:2]}", pytrace=False)


def as_user(user_id: int) -> dict[str, Any]:
    """Returns what makes ``subprocess`` start a program as ``user_id``."""
    if os.geteuid() == user_id:
        return {}
    return {"user": user_id, "group": user_id, "extra_groups": []}


class Seat:
    """One user's place: a workspace, a scratch and a way to run the driver there."""

    def __init__(self, base: Path, site: Path, user_id: int) -> None:
        self.base = base
        self.workspace = base / "workspace"
        self.user_id = user_id
        self._python = readable_interpreter(site, user_id)
        self._environment = {"PYTHONPATH": str(site), "KELPIE_TEST_SECRET": "hunter2"}

    def own(self, path: Path, mode: int) -> None:
        """Gives ``path`` to this seat's user, as its private file or directory."""
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, self.user_id, self.user_id)

    def write(self, name: str, content: str, mode: int = 0o600) -> Path:
        path = self.workspace / name
        path.write_text(content)
        self.own(path, mode)
        return path

    def start(self, action: str, **order: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [self._python, str(DRIVER.name)], cwd=self.base.parent / "driver",
            env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, **as_user(self.user_id),
        )  # fmt: skip
        assert process.stdin
        process.stdin.write(
            json.dumps({"base": str(self.base), "action": action, **order}).encode()
        )
        process.stdin.close()
        process.stdin = None
        return process

    def act(self, action: str, **order: Any) -> dict[str, Any]:
        """Runs one order to its end and returns what it came to."""
        with self.start(action, **order) as process:
            stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, stderr.decode()
        answer: dict[str, Any] = json.loads(stdout)
        print(answer)
        return answer

    def run(self, *argv: str, **order: Any) -> dict[str, Any]:
        return self.act("run", argv=argv, **order)

    def shell(self, script: str, **order: Any) -> dict[str, Any]:
        return self.run("sh", "-c", script, **order)

    def leftovers(self) -> list[str]:
        """Returns processes, control groups and scratch layers of this seat's jails."""
        from kelpie.sandbox.cgroups import find_controllers, find_leftovers
        from kelpie.sandbox.orphans import make_mark

        mark = make_mark(self.base / "scratch")
        groups = find_leftovers(find_controllers(mark), mark)
        layers = self.base.glob("scratch/jail-*")
        return [*processes_with(mark), *map(str, groups), *map(str, layers)]


def processes_with(text: str) -> list[str]:
    """Returns the command lines of all processes that contain ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(f"{entry.name}: {line}")
    return found


@pytest.fixture(scope="session")
def site() -> Iterator[Path]:
    """The product and its one dependency here, where any user may read them."""
    import msgspec

    require_program("bwrap", package="bubblewrap")
    home = Path(tempfile.mkdtemp(prefix="kelpie-seat-"))
    home.chmod(0o755)
    target = home / "site"
    shutil.copytree(PACKAGES / "kelpie", target / "kelpie")
    shutil.copytree(Path(msgspec.__file__).parent, target / "msgspec")
    (home / "driver").mkdir()
    shutil.copy(DRIVER, home / "driver" / DRIVER.name)
    for path in (home, *home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield target
    shutil.rmtree(home)


@pytest.fixture(params=IDENTITIES)
def seat(request: pytest.FixtureRequest, site: Path) -> Iterator[Seat]:
    """A private workspace (mode 0700) of root or of an ordinary user."""
    ordinary = USER_ID if os.geteuid() == 0 else os.geteuid()
    base = Path(tempfile.mkdtemp(prefix="base-", dir=site.parent))
    seat = Seat(base, site, 0 if request.param == "root" else ordinary)
    seat.workspace.mkdir()
    seat.own(base, 0o700)
    seat.own(seat.workspace, 0o700)
    yield seat
    assert not seat.leftovers(), "a jail left something behind"
    shutil.rmtree(base)
