"""What the product offers from outside: its commands and its routes, read from the product itself.

The command tree is walked from `kelpie.cli.root`; the routes are the operations that
`kelpie.server.table` holds, those of the documentation included. A room that does not exist offers
nothing.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.machinery
import importlib.util
from typing import TYPE_CHECKING

import click

from tests.tidy.documents import normalize_route
from tests.tidy.tree import ROOT, Module, Offence, product_modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def has_module(name: str) -> bool:
    """Whether the product has a module of this name."""
    return any(module.name == name for module in product_modules())


@functools.cache
def commands() -> dict[str, bool]:
    """Every `kelpie …` command with whether it is a group; empty while there is no cli."""
    if not has_module("kelpie.cli"):
        return {}
    root = importlib.import_module("kelpie.cli").root
    assert isinstance(root, click.Group)
    return dict(walk_commands(root, "kelpie"))


def walk_commands(group: click.Group, name: str) -> Iterator[tuple[str, bool]]:
    """The commands below a group, lazily loaded ones included; hidden ones are nobody's promise."""
    context = click.Context(group, info_name=name)
    for child_name in group.list_commands(context):
        child = group.get_command(context, child_name)
        assert child is not None, f"{name} lists {child_name} and does not have it"
        if child.hidden:
            continue
        full = f"{name} {child_name}"
        yield full, isinstance(child, click.Group)
        if isinstance(child, click.Group):
            yield from walk_commands(child, full)


@functools.cache
def routes() -> frozenset[str]:
    """Every route as `METHOD /path/{}`; empty while there is no table of operations."""
    if not has_module("kelpie.server.table"):
        return frozenset()
    table = importlib.import_module("kelpie.server.table")
    operations = (*table.operations(), *table.documentation({}, b""))
    return frozenset(normalize_route(operation.method, operation.path) for operation in operations)


@functools.cache
def dev_commands() -> frozenset[str]:
    """The commands of ./dev."""
    loader = importlib.machinery.SourceFileLoader("dev", str(ROOT / "dev"))
    spec = importlib.util.spec_from_loader("dev", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return frozenset(module.COMMANDS)


def is_command(program: str, words: list[str]) -> bool:
    """Whether `program words…` starts with a command; what follows it are its arguments."""
    if program == "./dev":
        return words[0] in dev_commands() | {"help"}
    known = commands()
    name = "kelpie"
    for word in words:
        name = f"{name} {word}"
        if name not in known:
            return False
        if not known[name]:
            return True
    return True


def covered_surface(tests: Iterable[Module]) -> dict[str, str]:
    """What the `covers` marks of the tests name, with the file that names it."""
    covered: dict[str, str] = {}
    for module in tests:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.covers"):
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{module.path}: covers takes text"
                    covered[normalize_cover(str(argument.value))] = module.path
    return covered


def normalize_cover(name: str) -> str:
    """The name of a command or route as this module spells it."""
    first, _, rest = name.partition(" ")
    return normalize_route(first, rest) if rest.startswith("/") else name


def find_uncovered(surface: Iterable[str], covered: dict[str, str]) -> Iterator[Offence]:
    """Commands and routes that no e2e test names in `@pytest.mark.covers(…)`."""
    for name in sorted(set(surface) - set(covered)):
        yield Offence(name, "no e2e test covers it")


def find_unknown_covers(surface: Iterable[str], covered: dict[str, str]) -> Iterator[Offence]:
    """Names in `covers` marks that the product does not offer."""
    for name in sorted(set(covered) - set(surface)):
        yield Offence(f"{covered[name]}:{name}", "is no command and no route")
