"""The tree says what is, keeps no secret, and knows no machine."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.tidy.tree import ROOT, judge, relative, tracked_files
from tests.tidy.words import (
    find_download_addresses,
    find_forbidden_words,
    find_lint_exceptions,
    find_places,
    find_private_keys,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_no_text_speaks_of_unfinished_work_or_reports_its_status() -> None:
    judge("forbidden-words", find_forbidden_words(tracked_files()))


def test_no_private_key_is_committed() -> None:
    judge("private-key", find_private_keys(tracked_files()))


def test_pins_name_no_download_address() -> None:
    judge("download-address", find_download_addresses(tracked_files()))


def test_no_file_names_a_folder_of_this_machine() -> None:
    # A checkout right below the root would make every path a finding.
    folders = [str(ROOT) + "/"] if len(ROOT.parts) > 2 else []
    if folders:
        judge("machine-path", find_places(tracked_files(), folders=folders))
    assert ROOT.is_absolute()


def test_each_banned_api_and_catch_all_is_on_the_allow_list() -> None:
    judge("lint-exception", find_lint_exceptions(tracked_files()))


PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": lambda text: list(yaml.safe_load_all(text)),
    ".yml": lambda text: list(yaml.safe_load_all(text)),
}


@pytest.mark.parametrize("suffix", sorted(PARSERS))
def test_every_data_file_parses(suffix: str) -> None:
    broken = []
    for path in tracked_files():
        if path.suffix == suffix:
            try:
                PARSERS[suffix](path.read_text(encoding="utf-8"))
            except (ValueError, yaml.YAMLError) as error:
                broken.append(f"{relative(path)}: {error}")
    assert broken == []
