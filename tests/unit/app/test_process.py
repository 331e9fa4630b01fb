"""Where the holder of a store listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie.app.process import SOCKET_PATH_BYTES_MAX, socket_path
from kelpie.core.errors import ConfigError
from kelpie.settings import Settings, load_settings


def settings(directory: Path) -> Settings:
    flags = {"data_dir": str(directory)}
    return load_settings(environment={}, cwd=directory, home=directory, flags=flags)


def test_the_socket_lies_beside_the_store(tmp_path: Path) -> None:
    short = Path("/srv/kelpie")
    assert socket_path(settings(short)) == short / "kelpie.sock"


def test_a_long_path_gets_a_short_private_name_of_its_own(tmp_path: Path) -> None:
    one, two = (Path("/srv") / ("x" * 100) / name for name in "ab")
    path = socket_path(settings(one), temporary=tmp_path)
    assert len(str(path)) - len(str(tmp_path)) < SOCKET_PATH_BYTES_MAX // 2
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path == socket_path(settings(one), temporary=tmp_path)
    assert path != socket_path(settings(two), temporary=tmp_path)
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="private"):
        socket_path(settings(one), temporary=tmp_path)
