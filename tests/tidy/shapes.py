"""Rules about how modules relate: who imports whom, which names are taken, which layers exist."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from tests.tidy.tree import Module, Offence, functions_of, imported_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Wire types may share a domain type's name at the edge that speaks them.
EDGE_ROOMS = {"server", "mcp", "cli"}
# What starts the product from outside, so that nothing inside imports it.
ENTRY_MODULES = {"kelpie", "kelpie.cli", "kelpie.cli.__main__"}
LAZY_NAME = re.compile(r"\w+:\w+")
# Who may import a library, by the top-level name of that library.
LIBRARY_ROOMS = {
    "pydantic": {"server", "mcp"},
    "starlette": {"server", "app"},
    "uvicorn": {"server", "app", "cli"},
}
# Rooms that only the composition root and the tests may know.
PROTECTED_ROOMS = {"host": {"app"}, "sim": {"cli"}}


def module_references(module: Module) -> set[str]:
    """What a module imports, lazily named modules included.

    A lazy name is a string such as `"kelpie.cli.chat"`, or `"chat:chat"` beside an f-string that
    starts with the package it is looked up in.
    """
    texts = {
        node.value
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    whole = {text.partition(":")[0] for text in texts if text.startswith("kelpie.")}
    packages = {text for text in whole if text.endswith(".")}
    parts = {text.partition(":")[0] for text in texts if LAZY_NAME.fullmatch(text)}
    return imported_names(module) | whole | {f"{head}{tail}" for head in packages for tail in parts}


def find_unimported(modules: Iterable[Module], users: Iterable[Module]) -> Iterator[Offence]:
    """Product modules that nothing imports. Only `sim` may be there for the tests alone."""
    product = list(modules)
    used_by_product: set[str] = set()
    for module in product:
        used_by_product |= module_references(module) - {module.name}
    used_by_others = set().union(*(imported_names(module) for module in users))
    for module in product:
        used = used_by_product | (used_by_others if module.room == "sim" else set())
        is_package = module.path.endswith("/__init__.py")
        reached = module.name in used or (
            is_package and any(name.startswith(f"{module.name}.") for name in used)
        )
        if not reached and module.name not in ENTRY_MODULES:
            yield Offence(module.path, "nothing imports it")


def find_shared_class_names(modules: Iterable[Module]) -> Iterator[Offence]:
    """Public class names that two rooms below the edge both define."""
    rooms_by_name: dict[str, dict[str, str]] = {}
    for module in modules:
        if module.room in EDGE_ROOMS:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                rooms_by_name.setdefault(node.name, {})[module.room] = module.path
    for name, places in rooms_by_name.items():
        if len(places) > 1:
            yield Offence(name, f"defined in {', '.join(sorted(places.values()))}")


def find_misplaced_libraries(modules: Iterable[Module]) -> Iterator[Offence]:
    """Imports of a library in a room that must not know it."""
    for module in modules:
        for name in imported_names(module):
            allowed = LIBRARY_ROOMS.get(name.partition(".")[0])
            if allowed is not None and module.room not in allowed:
                yield Offence(f"{module.path}:{name}", f"only {', '.join(sorted(allowed))} may")


def find_protected_imports(modules: Iterable[Module]) -> Iterator[Offence]:
    """Imports of `host` or `sim` from anywhere but the composition root."""
    for module in modules:
        for name in module_references(module):
            room = name.split(".")[1] if name.startswith("kelpie.") else ""
            importers = PROTECTED_ROOMS.get(room, {module.room}) | {room}
            if room in PROTECTED_ROOMS and module.room not in importers:
                yield Offence(f"{module.path}:{name}", f"only app.py and tests may import {room}")


def find_state_changers(module: Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and methods of a module that change state.

    A function changes state if it stores into an attribute or an item of `self`, calls a mutating
    method on an attribute of `self`, or sends a changing SQL statement. Construction is exempt: a
    constructor has no state to check before it.
    """
    for outer in ast.walk(module.tree):
        if not isinstance(outer, ast.ClassDef | ast.Module):
            continue
        if isinstance(outer, ast.ClassDef) and outer.name in RECORDERS:
            continue
        prefix = f"{outer.name}." if isinstance(outer, ast.ClassDef) else ""
        for node in outer.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("_") and any(map(is_change, ast.walk(node))):
                yield f"{prefix}{node.name}", node


# Classes that keep whatever they are given for a checker to read: there every state is a right one,
# so that an assertion could only repeat the assignment.
RECORDERS = {"RecordedTelemetry"}
CHECKERS = ("check_", "assert_", "require_")
MUTATORS = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"),
    *("popleft", "remove", "setdefault", "update"),
}
SQL_CHANGES = ("INSERT ", "UPDATE ", "DELETE ", "REPLACE ")


def is_change(node: ast.AST) -> bool:
    """Whether one node of a function changes state."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store() | ast.Del()):
            return True
        case ast.Subscript(value=ast.Attribute() as value, ctx=ast.Store() | ast.Del()):
            return is_of_self(value)
        case ast.Call(func=ast.Attribute(value=ast.Attribute() as value, attr=name)):
            return name in MUTATORS and is_of_self(value)
        case ast.Constant(value=str() as text):
            return text.lstrip().upper().startswith(SQL_CHANGES)
        case _:
            return False


def is_of_self(node: ast.expr) -> bool:
    """Whether an expression is an attribute of `self`, however deep."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "self"


def called_name(node: ast.AST) -> str:
    """The last part of the name a call uses; empty if the node is no call by name."""
    if not isinstance(node, ast.Call):
        return ""
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def count_asserts(function: ast.AST) -> int:
    """The `assert` statements of a function; `raise AssertionError` is one too."""
    return sum(map(is_assertion, ast.walk(function)))


def is_assertion(node: ast.AST) -> bool:
    """Whether one node asserts: by statement, or by the error that the statement raises."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return called_name(node.exc) == "AssertionError"
    return isinstance(node, ast.Assert)


def is_checker(name: str) -> bool:
    """Whether a function's name says that it checks, by assertion or by a typed error."""
    return name.lstrip("_").startswith(CHECKERS)


def count_assertions(module: Module) -> dict[str, int]:
    """Assertions of each public function of a module that changes state.

    Its own, and those of the functions of this module that it calls by name. A call of a `check_…`,
    `assert_…` or `require_…` counts as one at least, wherever that function is: one that raises a
    typed error checks as well as one that asserts.
    """
    helpers = {
        function.name: max(count_asserts(function), is_checker(function.name))
        for _, function in functions_of(module)
    }
    counts = {}
    for name, function in find_state_changers(module):
        called = {called_name(node) for node in ast.walk(function)} - {""}
        inherited = sum(helpers.get(callee, 0) for callee in called)
        foreign = [callee for callee in called - set(helpers) if is_checker(callee)]
        counts[name] = count_asserts(function) + inherited + len(foreign)
    return counts


def find_unchecked_changes(modules: Iterable[Module], *, least: int) -> Iterator[Offence]:
    """Modules whose state-changing functions have fewer than `least` assertions on average."""
    for module in modules:
        counts = count_assertions(module)
        if counts and sum(counts.values()) < least * len(counts):
            bare = ", ".join(name for name, count in counts.items() if count < least)
            total = f"{sum(counts.values())} assertions in {len(counts)} functions"
            yield Offence(module.path, f"{total} that change state; see {bare}")
