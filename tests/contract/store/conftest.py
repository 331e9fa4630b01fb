"""Runs the suite over every engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import Engine, SqliteEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENGINES: dict[str, Callable[[Path], Engine]] = {"postgres": PostgresEngine, "sqlite": SqliteEngine}


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine with an empty store."""
    engine = ENGINES[request.param](tmp_path)
    yield engine
    asyncio.run(engine.discard())
