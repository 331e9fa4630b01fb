"""The desk that command tests sit at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.product import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An empty directory and a product without routes."""
    (tmp_path / "home").mkdir()
    return Desk(tmp_path)
