"""The place that settings tests load from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.settings.world import ValuePlace, make_place


@pytest.fixture
def place(tmp_path: Path) -> ValuePlace:
    """A home and a project without files."""
    return make_place(tmp_path)
