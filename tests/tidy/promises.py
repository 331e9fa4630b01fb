"""Rules about tests: they keep promises, assert, never sleep, and are named after outcomes."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from tests.tidy.tree import Module, Offence, functions_of, imported_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from tests.requirements import Requirement

# The one module that may let real time pass.
WAITING = "tests/waiting.py"
KNOWN_DEFECTS_COUNT = 27
SIMULATORS = (
    "kelpie.sim.disk",
    "kelpie.sim.models",
    "kelpie.sim.run",
    "kelpie.sim.testing",
    "tests.simulation",
    "tests.integration.actors.simulated",
)
VIRTUAL_TIME = ("kelpie.sim.loop", "kelpie.sim.run", "kelpie.sim.testing")
NAME_WORDS_LEAST = 3
# Calls that fail the test by themselves when what they look at is wrong.
CHECKING_PREFIXES = (
    "assert_",
    "check_",
    "verify_",
    "expect_",
    "require_",
    "judge",
    "fail",
    "raises",
)


def requirement_marks(modules: Iterable[Module]) -> dict[str, str]:
    """The ids in `requirement` marks, with a file that carries each."""
    marks: dict[str, str] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.requirement"):
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{module.path}: ids are literals"
                    marks[str(argument.value)] = module.path
    return marks


def find_unkept_promises(promised: Collection[str], marks: dict[str, str]) -> Iterator[Offence]:
    """Promises without a test, and tests that name a promise nobody made."""
    for name in sorted(set(promised) - set(marks)):
        yield Offence(name, "no test carries this requirement")
    for name in sorted(set(marks) - set(promised)):
        yield Offence(name, f"{marks[name]} names it, tests/requirements.py does not")


def find_unsimulated(
    requirements: Mapping[str, Requirement], modules: Iterable[Module]
) -> Iterator[Offence]:
    """Promises on a critical path that no test keeps under the simulated loop or its models."""
    simulated = requirement_marks(module for module in modules if runs_simulated(module))
    for name, requirement in requirements.items():
        if requirement.path and name not in simulated:
            yield Offence(name, f"is on the path of {requirement.path}; no simulation holds it")


def runs_simulated(module: Module) -> bool:
    """Whether a test module runs shipped code in the simulated world, or explores it."""
    return any(name.startswith(SIMULATORS) for name in imported_names(module))


def find_lost_defects(numbered: Collection[str]) -> Iterator[Offence]:
    """Known defects that have neither a test nor a reason why they cannot come back yet."""
    for number in range(1, KNOWN_DEFECTS_COUNT + 1):
        if f"K-{number:02}" not in numbered:
            yield Offence(f"K-{number:02}", "is neither kept away by a test nor due")


def tests_of(module: Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The test functions of a module."""
    for name, function in functions_of(module):
        if function.name.startswith("test_"):
            yield name, function


def is_check(node: ast.AST) -> bool:
    """Whether one node of a test can make it fail on purpose."""
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return name.lstrip("_").startswith(CHECKING_PREFIXES)
    return False


def checking_functions(module: Module) -> set[str]:
    """The names of a module's functions that check something, or call one that does."""
    functions = {function.name: function for _, function in functions_of(module)}
    checking = {name for name, node in functions.items() if any(map(is_check, ast.walk(node)))}
    while True:
        callers = {
            name
            for name, node in functions.items()
            if checking & {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        }
        if callers <= checking:
            return checking
        checking |= callers


def find_tests_without_assertion(modules: Iterable[Module]) -> Iterator[Offence]:
    """Tests that can only fail by accident."""
    for module in modules:
        checking = checking_functions(module)
        for name, function in tests_of(module):
            if function.name not in checking:
                yield Offence(f"{module.path}:{name}", "asserts nothing")


def find_short_test_names(modules: Iterable[Module]) -> Iterator[Offence]:
    """Tests whose name is too short to state an outcome."""
    for module in modules:
        for name, function in tests_of(module):
            words = function.name.removeprefix("test_").split("_")
            if len(words) < NAME_WORDS_LEAST:
                yield Offence(f"{module.path}:{name}", "is not a sentence about an outcome")


def find_sleeps(modules: Iterable[Module]) -> Iterator[Offence]:
    """Tests that let real time pass.

    `asyncio.sleep(0)` is one turn of the loop, and on the simulated loop no sleep is real.
    """
    for module in modules:
        if module.path == WAITING:
            continue
        is_virtual = any(name.startswith(VIRTUAL_TIME) for name in imported_names(module))
        sleeps = {"time.sleep"} if is_virtual else {"time.sleep", "asyncio.sleep", "sleep"}
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            is_turn = isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if ast.unparse(node.func) in sleeps and not is_turn:
                yield Offence(module.path, "sleeps; wait with tests/waiting.py")
