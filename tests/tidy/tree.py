"""The checkout as the style program sees it: its files, its Python modules, its exceptions.

Owns reading; judges nothing but the allow-list. Files git ignores are not part of the tree.
"""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[2]
ALLOW_LIST = ROOT / "tests" / "tidy" / "allow.toml"
# Without git (an unpacked sdist), what a build or a tool leaves behind.
GENERATED = {".git", ".venv", ".dev", "dist", "build", "__pycache__", "node_modules"}


class Offence(NamedTuple):
    """Something a rule objects to. `where` is stable across edits, so that it can be allowed."""

    where: str
    what: str


class Module(NamedTuple):
    """A Python file with its parsed tree. `name` is dotted, `path` relative to the checkout."""

    name: str
    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room of the house a product module is in; empty for `kelpie` itself."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """Every file that is or would be committed, sorted."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        files = [path for path in ROOT.rglob("*") if not GENERATED & set(path.parts)]
    return tuple(sorted(path for path in set(files) if path.is_file()))


def relative(path: Path) -> str:
    """The path from the checkout's root, with slashes; also of a file outside of it."""
    return Path(os.path.relpath(path, ROOT)).as_posix()


def parse_module(text: str, *, path: str) -> Module:
    """Parses one Python file; its dotted name follows from where it lies."""
    parts = list(Path(path.removeprefix("src/")).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return Module(".".join(parts), path, text, ast.parse(text, filename=path))


@functools.cache
def python_modules() -> tuple[Module, ...]:
    """Every Python file of the checkout: product, tests, demo, benchmarks and ./dev."""
    files = [path for path in tracked_files() if path.suffix == ".py" or path == ROOT / "dev"]
    return tuple(
        parse_module(path.read_text(encoding="utf-8"), path=relative(path)) for path in files
    )


def product_modules() -> tuple[Module, ...]:
    """The modules of the package `kelpie`."""
    return tuple(module for module in python_modules() if module.path.startswith("src/kelpie/"))


def modules_under(*folders: str) -> tuple[Module, ...]:
    """The modules whose path starts with one of `folders`."""
    return tuple(module for module in python_modules() if module.path.startswith(folders))


def rooms() -> set[str]:
    """The rooms of the house that exist: packages and modules directly below `kelpie`."""
    return {module.room for module in product_modules()} - {""}


def functions_of(
    module: Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its qualified name, nested ones included."""
    yield from _walk_functions(module.tree, "")


def _walk_functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child
        inner = (
            f"{prefix}{child.name}."
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else prefix
        )
        yield from _walk_functions(child, inner)


def imported_names(module: Module) -> set[str]:
    """Dotted names that a module imports, `from a import b` as both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def allow_list() -> dict[str, set[str]]:
    """The allowed offences by rule."""
    allowed: dict[str, set[str]] = {}
    for entry in tomllib.loads(ALLOW_LIST.read_text(encoding="utf-8")).get("allow", []):
        allowed.setdefault(entry["rule"], set()).add(entry["where"])
    return allowed


def judge(rule: str, offences: Iterable[Offence]) -> None:
    """Fails on an offence that is not allowed, and on an allowance that is no longer needed."""
    found = sorted(set(offences))
    allowed = allow_list().get(rule, set())
    new = [offence for offence in found if offence.where not in allowed]
    stale = sorted(allowed - {offence.where for offence in found})
    lines = [f"{offence.where}: {offence.what}" for offence in new]
    lines += [f"{where}: allowed in allow.toml, no longer needed: remove it" for where in stale]
    if lines:
        pytest.fail(f"{rule}: {len(lines)}\n" + "\n".join(lines), pytrace=False)
