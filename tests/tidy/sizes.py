"""Rules about size: functions, modules, files, and what a person must read to trust the loop."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tests.tidy.tree import Module, Offence, functions_of, imported_names, relative

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 800
FILE_SIZE_BYTES_MAX = 256 * 1024
AUDIT_LINES_MAX = 4_000
AUDIT_ROOMS = ("kelpie.agents", "kelpie.effects")


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines the docstring takes."""
    if ast.get_docstring(function, clean=False) is None:
        return 0
    first = function.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def find_long_functions(modules: Iterable[Module]) -> Iterator[Offence]:
    """Functions longer than the limit, from `def` to the end, without the docstring."""
    for module in modules:
        for name, function in functions_of(module):
            whole = (function.end_lineno or function.lineno) - function.lineno + 1
            lines = whole - docstring_lines(function)
            if lines > FUNCTION_LINES_MAX:
                yield Offence(f"{module.path}:{name}", f"{lines} lines > {FUNCTION_LINES_MAX}")


def find_long_modules(modules: Iterable[Module]) -> Iterator[Offence]:
    """Modules longer than the limit."""
    for module in modules:
        lines = module.text.count("\n")
        if lines > MODULE_LINES_MAX:
            yield Offence(module.path, f"{lines} lines > {MODULE_LINES_MAX}")


def find_large_files(files: Iterable[Path]) -> Iterator[Offence]:
    """Files larger than the limit."""
    for path in files:
        size_bytes = path.stat().st_size
        if size_bytes > FILE_SIZE_BYTES_MAX:
            yield Offence(relative(path), f"{size_bytes} bytes > {FILE_SIZE_BYTES_MAX}")


def reachable_modules(start: Iterable[str], modules: Iterable[Module]) -> list[Module]:
    """`start` and all that it imports, directly or not, from the rooms that the audit covers.

    Importing `a.b.c` also runs `a.b`, so the packages on the way are included.
    """
    by_name = {module.name: module for module in modules if module.name.startswith(AUDIT_ROOMS)}
    found: set[str] = set()
    waiting = [name for name in start if name in by_name]
    while waiting:
        name = waiting.pop()
        if name in found or name not in by_name:
            continue
        found.add(name)
        waiting += imported_names(by_name[name])
        waiting.append(name.rpartition(".")[0])
    return [by_name[name] for name in sorted(found)]


def count_audit_lines(start: Iterable[str], modules: Iterable[Module]) -> int:
    """How many lines a person reads to audit the agent loop, comments and blanks included."""
    return sum(module.text.count("\n") for module in reachable_modules(start, modules))
