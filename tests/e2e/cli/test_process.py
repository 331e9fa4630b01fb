"""The program as a process: what works without a server, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kelpie

SOURCE = str(Path(kelpie.__file__).parents[1])


def _kelpie(directory: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in ``directory``, which is its home too, with nothing else around it."""
    return subprocess.run(
        [sys.executable, "-m", "kelpie.cli", *words],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE, "HOME": str(directory)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.covers("kelpie version")
def test_version_prints_the_version(tmp_path: Path) -> None:
    result = _kelpie(tmp_path, "version")
    assert (result.returncode, result.stdout) == (0, f"kelpie {kelpie.__version__}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.covers("kelpie config show")
def test_the_settings_of_all_layers_come_out_with_their_origins(tmp_path: Path) -> None:
    (tmp_path / ".config" / "kelpie").mkdir(parents=True)
    (tmp_path / ".config" / "kelpie" / "config.toml").write_text("[log]\nlevel = 'debug'\n")
    (tmp_path / "kelpie.toml").write_text("[server]\nport = 9000\n")
    words = ("config", "show", "--origin", "--json")
    result = _kelpie(tmp_path, *words, KELPIE_MODEL="local/x")
    values = json.loads(result.stdout)
    user = tmp_path / ".config" / "kelpie" / "config.toml"
    assert values["log.level"]["origin"] == f"user {user}:2"
    assert values["server.port"]["origin"] == f"project {tmp_path / 'kelpie.toml'}:2"
    assert values["model"] == {"value": "local/x", "origin": "environment KELPIE_MODEL"}
    text = _kelpie(tmp_path, "config", "show").stdout
    assert tomllib.loads(text)["server"]["port"] == 9000
    assert "\x1b" not in text


@pytest.mark.covers("kelpie serve")
def test_serve_refuses_an_open_address_without_a_key(tmp_path: Path) -> None:
    result = _kelpie(tmp_path, "serve", "--host", "0.0.0.0")
    assert result.returncode == 2
    assert "set KELPIE_API_KEY or server.api_keys" in result.stderr
    assert not (tmp_path / ".local").exists(), "a refused start leaves nothing behind"


@pytest.mark.covers("kelpie agents list")
def test_a_server_that_is_not_there_is_named_with_the_next_command(tmp_path: Path) -> None:
    result = _kelpie(tmp_path, "agents", "list", "--url", "http://127.0.0.1:1", "--json")
    assert (result.returncode, result.stdout) == (69, "")
    assert json.loads(result.stderr)["error"]["next"] == "kelpie serve"
