"""What the tests need from the machine. A missing package fails the test and names the cure."""

from __future__ import annotations

import os
import shutil

import pytest

# Daemons and root's tools are often outside an ordinary user's path.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def require_program(program: str, *, package: str) -> str:
    """Returns the full path of `program`, or fails the test with the command that installs it."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if found is None:
        pytest.fail(f"{program} is missing; run: sudo apt-get install -y {package}", pytrace=False)
    return found
