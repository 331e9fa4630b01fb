"""Nothing is larger than a person can read."""

from __future__ import annotations

from tests.tidy.sizes import (
    AUDIT_LINES_MAX,
    count_audit_lines,
    find_large_files,
    find_long_functions,
    find_long_modules,
)
from tests.tidy.tree import judge, product_modules, python_modules, rooms, tracked_files


def test_no_function_is_longer_than_70_lines() -> None:
    judge("function-length", find_long_functions(python_modules()))


def test_no_module_is_longer_than_800_lines() -> None:
    judge("module-length", find_long_modules(python_modules()))


def test_no_file_is_larger_than_256_kilobytes() -> None:
    judge("file-size", find_large_files(tracked_files()))


def test_the_agent_loop_with_its_imports_stays_small_enough_to_audit() -> None:
    modules = product_modules()
    # Every module of the room is a start: nothing of the loop can hide behind another name.
    start = [module.name for module in modules if module.room == "agents"]
    lines = count_audit_lines(start, modules)
    assert lines < AUDIT_LINES_MAX, f"{lines} lines to audit"
    assert bool(lines) == ("agents" in rooms())
