"""The place that settings tests load from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.settings.world import Place, make_place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A home and a project without files."""
    return make_place(tmp_path)
