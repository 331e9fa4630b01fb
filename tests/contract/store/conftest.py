"""Runs the suite over every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.store.world import Engine, SqliteEngine

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = {"sqlite": SqliteEngine}


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """An engine with an empty store."""
    return ENGINES[request.param](tmp_path)
