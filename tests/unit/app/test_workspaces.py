"""Which directories may be a workspace, when they are named and when an effect uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie.app.workspaces import is_workspace, require_workspace
from kelpie.core.errors import InvalidFieldError
from kelpie.settings import Settings
from tests.unit.settings.world import make_place


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose data directory and whose store lie apart."""
    (tmp_path / "kept" / "data").mkdir(parents=True)
    environment = {
        "KELPIE_DATA_DIR": str(tmp_path / "kept" / "data"),
        "KELPIE_STORE_PATH": str(tmp_path / "elsewhere" / "own.db"),
    }
    return make_place(tmp_path / "place").load(environment)


@pytest.mark.parametrize(
    "where",
    [".", "kept", "kept/data", "kept/data/inside", "elsewhere", "elsewhere/own.db.blobs", "way"],
)
def test_a_directory_that_shares_files_with_the_store_is_never_a_workspace(
    settings: Settings, tmp_path: Path, where: str
) -> None:
    (tmp_path / "way").symlink_to(tmp_path / "kept")
    directory = tmp_path / where
    directory.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InvalidFieldError, match="Kelpie's own data"):
        require_workspace(settings, str(directory), local=True)
    assert not is_workspace(settings, str(directory))


def test_a_directory_beside_the_store_is_a_workspace(settings: Settings, tmp_path: Path) -> None:
    for name in ("kept/project", "kept/database", "elsewhere/project"):
        directory = tmp_path / name
        directory.mkdir(parents=True)
        assert require_workspace(settings, str(directory), local=True) == str(directory)
        assert is_workspace(settings, str(directory))


def test_a_workspace_that_became_a_link_is_none_any_more(
    settings: Settings, tmp_path: Path
) -> None:
    directory = tmp_path / "work" / "project"
    directory.mkdir(parents=True)
    root = require_workspace(settings, str(directory), local=True)
    assert is_workspace(settings, root)
    directory.rmdir()
    directory.symlink_to(tmp_path / "place")
    assert not is_workspace(settings, root)
    directory.unlink()
    directory.parent.rmdir()
    (tmp_path / "other" / "project").mkdir(parents=True)
    directory.parent.symlink_to(tmp_path / "other")
    assert not is_workspace(settings, root)
