"""The house holds: every module has a user, every name one meaning, every room its place."""

from __future__ import annotations

import re
import tomllib

from tests.tidy.shapes import (
    find_misplaced_libraries,
    find_protected_imports,
    find_shared_class_names,
    find_unchecked_changes,
    find_unimported,
)
from tests.tidy.tree import ROOT, judge, modules_under, product_modules, rooms

ASSERTIONS_LEAST = 2
CHECKED_ROOMS = {"storage", "actors", "cluster", "effects", "sim", "infra"}


def test_something_imports_every_module() -> None:
    judge("unimported-module", find_unimported(product_modules(), modules_under("tests/")))


def test_a_class_name_has_one_meaning_below_the_edge() -> None:
    judge("shared-class-name", find_shared_class_names(product_modules()))


def test_web_and_validation_libraries_stay_at_the_edge() -> None:
    judge("misplaced-library", find_misplaced_libraries(product_modules()))


def test_only_the_composition_root_picks_a_world() -> None:
    judge("protected-room", find_protected_imports(product_modules()))


def test_every_room_has_its_layer_and_nothing_else_lies_in_the_house() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [
        contract["layers"]
        for contract in config["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    assert rooms() - set(re.findall(r"\w+", " ".join(layers))) == set()


def test_functions_that_change_state_check_it() -> None:
    modules = [module for module in product_modules() if module.room in CHECKED_ROOMS]
    judge("assertions", find_unchecked_changes(modules, least=ASSERTIONS_LEAST))
