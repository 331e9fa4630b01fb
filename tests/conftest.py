"""What every suite shares. Fixtures belong to the suites."""

from __future__ import annotations

pytest_plugins = ["tests.plugins.async_tests", "tests.plugins.coverage_ratchet"]
