"""A program with actor classes is loaded as it stands, or refused with its line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie.app.actor_file import load_actor_classes
from kelpie.core.errors import InvalidFieldError

CLASSES = """\
from kelpie import Actor, State, command

class Tally(State):
    total: int = 0

class Base(Actor[Tally]):
    pass

class First(Base):
    @command
    def add(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total

class Second(First):
    pass
"""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """What a program adds to the interpreter is gone after the test."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def load(directory: Path, text: str, place: str = "program.py") -> list[str]:
    (directory / "program.py").write_text(text)
    return [kind.__name__ for kind in load_actor_classes(place, directory=directory)]


def refusal(directory: Path, text: str, place: str = "program.py") -> InvalidFieldError:
    with pytest.raises(InvalidFieldError) as caught:
        load(directory, text, place)
    return caught.value


def test_every_class_with_methods_is_found_in_the_order_of_definition(tmp_path: Path) -> None:
    assert load(tmp_path, CLASSES) == ["First", "Second"]


def test_a_list_named_actors_decides(tmp_path: Path) -> None:
    assert load(tmp_path, f"{CLASSES}\nactors = [Second]\n") == ["Second"]


@pytest.mark.parametrize("place", ["program.py:Second", "program:Second"])
def test_an_attribute_decides_for_a_file_and_for_a_module(tmp_path: Path, place: str) -> None:
    assert load(tmp_path, f"{CLASSES}\nactors = []\n", place) == ["Second"]


def test_a_program_sees_the_modules_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_program.py").write_text(CLASSES)
    assert load(tmp_path, "from beside_the_program import First") == ["First"]


def test_a_program_named_like_a_module_does_not_replace_it(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text(CLASSES)
    load_actor_classes("json.py", directory=tmp_path)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("x = 1\ndef broken(:\n", "program.py:2 does not load: SyntaxError", 2),
        ("\n\nraise ValueError('no')\n", "program.py:3 does not load: ValueError: no", 3),
        ("import nowhere_at_all\n", "program.py:1 does not load: ModuleNotFoundError", 1),
        ("raise SystemExit(3)\n", "program.py:1 does not load: SystemExit: 3", 1),
        ("def f():\n    return 1 / 0\n\nf()\n", "program.py:2 does not load: ZeroDivision", 2),
    ],
)
def test_a_program_that_does_not_load_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str, line: int
) -> None:
    error = refusal(tmp_path, text)
    assert said in error.message
    assert error.fields["line"] == line


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("x = 1\n", "program.py", "defines no class of kelpie.Actor"),
        ("actors = [int]\n", "program.py", "must be actor classes"),
        ("", "other.py", "does not exist"),
        ("", "program.py:gone", "has no attribute 'gone'"),
        ("", "no-module", "neither a .py file nor a module's name"),
        ("", "nowhere_at_all", "does not load: ModuleNotFoundError"),
    ],
)
def test_a_program_without_actor_classes_is_refused_with_the_reason(
    tmp_path: Path, text: str, place: str, said: str
) -> None:
    assert said in refusal(tmp_path, text, place).message


MISDEFINED = """\
from kelpie import Actor, State, command

class Tally(State):
    total: int = 0

class Counter(Actor[Tally]):
    @command
    def add(self, amount) -> int:
        return self.state.total

class Silent(Actor[Tally]):
    pass
"""


@pytest.mark.parametrize(
    ("text", "place", "said", "line"),
    [
        (MISDEFINED, "program.py", "program.py:7: Counter.add: parameter 'amount'", 7),
        (MISDEFINED, "program.py:Silent", "program.py:11: Silent has no @command", 11),
        (
            MISDEFINED.replace("amount)", "*amounts: int)"),
            "program:Counter",
            "program.py:7: Counter.add: *amounts: int cannot travel",
            7,
        ),
        (
            MISDEFINED.replace("amount)", "amount: int)").replace("    pass", "    actor_type='x'"),
            "program.py:Silent",
            "program.py:11: x has no @command",
            11,
        ),
    ],
)
def test_a_class_that_cannot_be_hosted_is_refused_with_its_line(
    tmp_path: Path, text: str, place: str, said: str, line: int
) -> None:
    error = refusal(tmp_path, text, place)
    assert said in error.message
    assert error.fields["line"] == line


def test_a_type_name_of_kelpies_own_is_refused(tmp_path: Path) -> None:
    named = CLASSES.replace("class First(Base):", "class First(Base):\n    actor_type = 'kelpie.x'")
    error = refusal(tmp_path, named, "program.py:First")
    assert "program.py:9: kelpie.x" in error.message
