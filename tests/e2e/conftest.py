"""What the end-to-end suites share: a node of its own for each test or module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node of this test alone; nothing of it runs yet."""
    made = Node(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that the tests of one module share; nothing of it runs yet."""
    made = Node(tmp_path_factory.mktemp("node"))
    yield made
    made.close()
