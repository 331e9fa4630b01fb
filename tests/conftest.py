"""What every suite shares. Fixtures belong to the suites."""

from __future__ import annotations

from hypothesis import settings

# A machine under load is slow, not wrong; a failing example prints how to run it again.
settings.register_profile("kelpie", deadline=None, print_blob=True)
settings.load_profile("kelpie")

pytest_plugins = [
    "kelpie.sim.plugin",
    "tests.plugins.async_tests",
    "tests.plugins.coverage_ratchet",
    "tests.plugins.databases",
]
