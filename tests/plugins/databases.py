"""Ends the database servers that tests started, in each process that runs tests.

A worker of xdist leaves without running what was registered for its exit, so pytest is asked.
"""

from __future__ import annotations

import sys


def pytest_unconfigure() -> None:
    """Ends them, if the module that starts them was ever needed."""
    servers = sys.modules.get("tests.postgres")
    if servers is not None:
        servers.stop_all()
