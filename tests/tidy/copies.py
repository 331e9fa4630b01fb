"""Rules about what should not be there: code written twice, and code that nothing uses."""

from __future__ import annotations

import ast
import importlib
import io
import itertools
import tokenize
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import vulture

from tests.tidy.tree import Module, Offence, parse_module, relative

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CLONE_LINES_MIN = 10
INSIGNIFICANT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
# Click calls what it decorates, pytest what it finds.
CALLED_BY_DECORATOR = [
    *("@*.command*", "@*.group*", "@*.callback*", "@*.result_callback*", "@pytest.fixture*"),
    *("@override", "@typing_extensions.override", "@*.setter", "@overload", "@*.hookimpl*"),
    # handlers of actors, which the runtime calls by name
    *("@command", "@query", "@upcast*"),
]
CALLED_BY_NAME = [
    *("test_*", "pytest_*", "visit_*", "__*__", "pytestmark"),
    # asyncio's protocols
    *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing"),
    *("resume_writing", "datagram_received", "error_received", "process_exited"),
    *("pipe_data_received", "pipe_connection_lost"),
    # httptools' parsers
    *("on_message_begin", "on_url", "on_status", "on_header", "on_headers_complete"),
    *("on_body", "on_message_complete"),
]
# A field of a record is there because its schema says so; ruff finds unused locals and imports.
JUDGED_KINDS = {"class", "function", "method", "property", "unreachable_code"}


class Line(NamedTuple):
    """One significant line: its number and its tokens, spacing and comments taken out."""

    number: int
    tokens: str


def ignored_lines(tree: ast.Module) -> set[int]:
    """The lines of docstrings and imports, which are alike for good reasons."""
    ignored: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
                ignored.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return ignored


def significant_lines(module: Module) -> list[Line]:
    """The lines of a module that say something: no comment, docstring, import or lone bracket."""
    ignored = ignored_lines(module.tree)
    tokens: dict[int, list[str]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in INSIGNIFICANT and token.start[0] not in ignored:
            tokens[token.start[0]].append(token.string)
    return [
        Line(number, " ".join(words))
        for number, words in sorted(tokens.items())
        if any(character.isalnum() for word in words for character in word)
    ]


def find_clones(modules: Iterable[Module]) -> Iterator[Offence]:
    """Runs of ten or more equal lines in two places, each pair of places reported once."""
    lines = {module.path: significant_lines(module) for module in modules}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for path, significant in lines.items():
        texts = [line.tokens for line in significant]
        for start in range(len(texts) - CLONE_LINES_MIN + 1):
            places[tuple(texts[start : start + CLONE_LINES_MIN])].append((path, start))
    reported: set[tuple[str, str, int]] = set()
    for here, there in sorted(pairs(places.values())):
        # A longer run is many windows at the same distance: the first of them stands for all.
        run = (here[0], there[0], there[1] - here[1])
        overlaps = here[0] == there[0] and there[1] - here[1] < CLONE_LINES_MIN
        if run not in reported and not overlaps:
            reported.add(run)
            first = lines[here[0]][here[1]].number
            second = lines[there[0]][there[1]].number
            yield Offence(f"{here[0]}~{there[0]}", f"lines {first} and {second}")


def pairs(
    groups: Iterable[list[tuple[str, int]]],
) -> Iterator[tuple[tuple[str, int], tuple[str, int]]]:
    """Each place of a group with the next one."""
    for group in groups:
        ordered = sorted(group)
        yield from itertools.pairwise(ordered)


def find_dead_code(paths: Iterable[Path], *, judged: tuple[str, ...]) -> Iterator[Offence]:
    """Functions, classes and methods below `judged` that nothing in `paths` uses."""
    finder = vulture.Vulture(ignore_names=CALLED_BY_NAME, ignore_decorators=CALLED_BY_DECORATOR)
    finder.scavenge([str(path) for path in paths])
    for item in finder.get_unused_code(min_confidence=60):
        path = relative(item.filename)
        if not path.startswith(judged) or item.typ not in JUDGED_KINDS:
            continue
        if not overrides_foreign_method(item.filename, item.first_lineno, item.name):
            yield Offence(f"{path}:{item.name}", f"line {item.first_lineno}: unused {item.typ}")


def overrides_foreign_method(path: Path, line: int, name: str) -> bool:
    """Whether the method at `line` overrides one of a library's class, which then calls it."""
    module = parse_module(path.read_text(encoding="utf-8"), path=relative(path))
    owners = [
        node.name
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    if not owners or not module.name.startswith("kelpie."):
        return False
    owner = getattr(importlib.import_module(module.name), owners[0])
    foreign = [base for base in owner.__mro__ if not base.__module__.startswith("kelpie")]
    return any(name in vars(base) for base in foreign)
