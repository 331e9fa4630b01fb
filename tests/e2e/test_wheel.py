"""The wheel, installed into an empty environment with what it declares and nothing else, runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from functools import partial
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Dependency

from tests.e2e.support.node import START_S, Server, free_port, has_begun, listens
from tests.e2e.support.processes import Process
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built from its source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    assert len(list(folder.glob("kelpie_runtime-*.tar.gz"))) == 1
    (built,) = folder.glob("kelpie_runtime-*-py3-none-any.whl")
    return built


def read_dependencies(wheel: Path) -> list[str]:
    """What the wheel's metadata says it needs."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    return metadata.get_all("Requires-Dist", [])


def close_over(dependencies: list[str]) -> dict[str, Distribution]:
    """The distributions that `dependencies` need here, directly or not, without extras."""
    found: dict[str, Distribution] = {}
    waiting = list(dependencies)
    while waiting:
        dependency = Dependency(waiting.pop())
        if dependency.marker is not None and not dependency.marker.evaluate({"extra": ""}):
            continue
        if dependency.name not in found:
            installed = distribution(dependency.name)
            assert installed.version in dependency.specifier, dependency
            found[dependency.name] = installed
            waiting += installed.requires or []
    return found


def copy_distribution(installed: Distribution, *, packages: Path) -> None:
    """Copies an installed distribution's files, its scripts excepted."""
    for file in installed.files or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or not source.exists():
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its declared dependencies; no registry is asked."""
    root = tmp_path_factory.mktemp("empty")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(root)
    (packages,) = root.glob("lib/python3.*/site-packages")
    for installed in close_over(read_dependencies(wheel)).values():
        copy_distribution(installed, packages=packages)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", root / "bin" / "python", "install"),
            *("--quiet", "--no-index", "--no-deps", wheel),
        ],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_FIND_LINKS": ""},
    )
    return root


@pytest.mark.requirement("PACKAGE-WHEEL")
@pytest.mark.covers("kelpie version")
def test_the_wheel_in_an_empty_environment_tells_its_version(empty_environment: Path) -> None:
    done = subprocess.run(
        [empty_environment / "bin" / "kelpie", "version", "--json"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"]


@pytest.mark.requirement("PACKAGE-WHEEL")
@pytest.mark.covers("kelpie serve")
def test_the_wheel_in_an_empty_environment_serves_until_it_is_told_to_stop(
    empty_environment: Path, tmp_path: Path
) -> None:
    port = free_port()
    process = Process(
        [str(empty_environment / "bin" / "kelpie"), "serve", "--json", "--port", str(port)],
        environment={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        output=tmp_path / "serve",
    )
    try:
        eventually(partial(has_begun, process), within_s=START_S, what="the wheel to serve")
        assert process.status is None, process.err
        with Server(process, port).client() as client:
            assert client.get("/v1/health").json()["status"] == "ok"
            assert client.get("/v1/agents").json() == []
        assert process.end() == 0, process.err
    finally:
        process.kill()
    assert (tmp_path / ".local/share/kelpie/kelpie.db").exists()
    assert not listens(port)


def test_the_wheel_says_that_it_is_typed_and_carries_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "kelpie/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "demo/", "bench/")) for name in names)
