"""A project of a user's own for each module, and for tests that change it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.sim.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A project of this test alone."""
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A project that the tests of one module share."""
    return Desk(tmp_path_factory.mktemp("shop"))
